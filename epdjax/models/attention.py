"""Attention over keys and values that lie side by side in memory: the reference every other kernel is checked against.

Attention over a paged KV pool is a matter of serving and lives there; it ends in the same arithmetic. Serving also has
faster kernels than these, and hands them to encoders and decoders as an argument; models call what they are given.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with every key masked gives a mean instead of NaN
BLOCK = 512  # queries scored at once by `blocked_attention`
DENSE_LIMIT = 2048  # up to this many it scores all at once: blocks would pad the 1025 tokens of a tile to 1536


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """How a decoder layer attends, beyond the mask that all layers share.

    Attributes:
        window: how many tokens back a token sees, itself included; None: all of them.
        scale: of the scores; None: ``head_dim ** -0.5``.
        softcap: scores become ``softcap * tanh(score / softcap)``; None: they stay.
    """

    window: int | None = None
    scale: float | None = None
    softcap: float | None = None


FULL = AttentionKind()


def dense_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    mask_bts: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention with grouped query heads; scores and softmax in float32.

    Args:
        q_btnh: queries, ``n`` heads.
        k_bskh: keys, ``k`` heads, ``n`` a multiple of ``k``; query head ``i`` reads key head ``i // (n // k)``.
        v_bskh: values.
        mask_bts: bool, True where a query may look; broadcastable to ``[b, t, s]``. None: everywhere.
        scale, softcap: see `AttentionKind`.

    Returns:
        ``o_btnh`` in the dtype of `q_btnh`.
    """
    b, t, n, h = q_btnh.shape
    _, s, k, _ = k_bskh.shape
    scale = h**-0.5 if scale is None else scale
    # x: row and key head, m: query head of its group and query. As plain batched products, with the batch in front,
    # these take XLA:CPU half the time or less of what it makes of products over the arrays as they come.
    q_xmh = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b * k, -1, h)
    k_xsh, v_xsh = (x_bskh.swapaxes(1, 2).reshape(b * k, s, -1) for x_bskh in (k_bskh, v_bskh))
    scores_xms = jnp.einsum("xmh,xsh->xms", q_xmh, k_xsh, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores_xms = softcap * jnp.tanh(scores_xms / softcap)
    if mask_bts is not None:
        scores_bkgts = scores_xms.reshape(b, k, n // k, t, s)
        scores_xms = jnp.where(mask_bts[:, None, None], scores_bkgts, MASKED).reshape(scores_xms.shape)
    weights_xms = jax.nn.softmax(scores_xms, axis=-1).astype(v_bskh.dtype)
    o_bkgth = jnp.einsum("xms,xsh->xmh", weights_xms, v_xsh).reshape(b, k, n // k, t, -1)
    return o_bkgth.transpose(0, 3, 1, 2, 4).reshape(b, t, n, -1)


class UnitAttend(Protocol):
    """What an encoder calls to attend among the patches of a unit.

    Shapes: ``q_btnh``, ``k_bskh``, ``v_bskh``; ``valid_bs`` bool, the keys that are not padding (None: all); returns
    ``o_btnh``. `scattered` says that padding may be anywhere, and not just behind what is valid.
    """

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, scattered: bool = False
    ) -> jax.Array: ...

    def __hash__(self) -> int: ...  # programs are traced once for each


def blocked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, scattered: bool = False
) -> jax.Array:
    """The reference `UnitAttend`: `dense_attention`, of units of many patches `BLOCK` queries at a time.

    No ``[heads, t, s]`` matrix exists then. Where padding lies makes no difference here.
    """
    q_btnh, k_bskh, v_bskh, valid_bs = q, k, v, valid
    b, t, n, h = q_btnh.shape
    mask_b1s = None if valid_bs is None else valid_bs[:, None]
    if t <= DENSE_LIMIT:
        return dense_attention(q_btnh, k_bskh, v_bskh, mask_b1s)
    blocks = -(-t // BLOCK)
    padded = jnp.pad(q_btnh, ((0, 0), (0, blocks * BLOCK - t), (0, 0), (0, 0)))
    q_cbtnh = padded.reshape(b, blocks, BLOCK, n, h).swapaxes(0, 1)
    o_cbtnh = jax.lax.map(lambda q: dense_attention(q, k_bskh, v_bskh, mask_b1s), q_cbtnh)
    return o_cbtnh.swapaxes(0, 1).reshape(b, blocks * BLOCK, n, -1)[:, :t]


def causal_mask(t: int, window: int | None = None) -> jax.Array:
    """``[1, t, t]`` bool: position i sees positions 0..i, or the last `window` of them."""
    ahead = jnp.arange(t)[:, None] - jnp.arange(t)
    seen = ahead >= 0
    return (seen if window is None else seen & (ahead < window))[None]

"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one native-resolution transformer with different switches.

A unit is a grid of patches of any size, in an order where each merge square (2 x 2 patches, one MM token) is a run of
neighbours. Qwen2.5-VL's units are laid out window by window, each window padded to all its slots, so that attention
within windows is a batch of small dense attentions; layers that see the whole unit mask the padding.

References: HF ``Qwen2VisionTransformerPretrainedModel``, ``Qwen2_5_VisionTransformerPretrainedModel``,
``Qwen3VLVisionModel``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention, dense_attention
from epdjax.models.layers import Linear, activation, norm, param
from epdjax.models.rope import rotate

NORM_EPS = 1e-6  # of every norm in these towers; no config states it
AXES = ("vision_in", "vision_out")


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes and switches of a tower. Lengths are in pixels, or in patches where said so.

    Attributes:
        temporal_patch_size: frames in a patch.
        merge_size: side, in patches, of the square that becomes one MM token.
        out_size: width of an MM token.
        norm_type: ``rms_norm`` or ``layer_norm``.
        gated_mlp: gate, up and down projections instead of two layers.
        patch_bias: whether the patch embedding has one.
        rope_theta: base of the rotary frequencies; half of them follow the row of a patch, half its column.
        window: side of an attention window in MM tokens; 0: every layer sees the whole unit.
        full_layers: the layers that see the whole unit where others see their window.
        position_side: side of the learned table of positions that is interpolated to a unit's grid; 0: none.
        deepstack_layers: the layers whose output also goes, through mergers of their own, into the decoder.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    hidden_act: str
    out_size: int
    norm_type: str
    gated_mlp: bool
    patch_bias: bool
    rope_theta: float = 10000.0
    window: int = 0
    full_layers: tuple[int, ...] = ()
    position_side: int = 0
    deepstack_layers: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def cell(self) -> int:
        """Patches that become one MM token."""
        return self.merge_size**2

    @property
    def slots(self) -> int:
        """Patches that are kept together: those of a window, or of one MM token where there are no windows."""
        return self.cell * max(self.window, 1) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: frames, rows, columns, colours."""
        return self.temporal_patch_size * self.patch_size**2 * 3


def axial_rotary(positions_up2: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) ``[u, p, head_dim / 2]`` float32: the first half of the frequencies turns with the row of a patch, the
    second with its column."""
    quarter = head_dim // 4
    frequencies = (1.0 / theta ** (np.arange(quarter, dtype=np.float32) / quarter)).astype(np.float32)
    angles = positions_up2.astype(jnp.float32)[..., None] * frequencies
    angles = angles.reshape(*positions_up2.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)


class VisionAttention(nnx.Module):
    """Attention among the patches of a unit, or of each of its windows."""

    def __init__(self, config: QwenVisionConfig, windowed: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Linear(d, d, axes=AXES, bias=True, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.num_heads = config.num_heads
        self.slots = config.slots if windowed else None
        self.scattered = config.window > 0  # each window of a unit has its own padding

    def __call__(
        self, x_upd: jax.Array, cos: jax.Array, sin: jax.Array, valid_up: jax.Array, attend: UnitAttend
    ) -> jax.Array:
        u, p, d = x_upd.shape
        q, k, v = (y(x_upd).reshape(u, p, self.num_heads, -1) for y in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.slots is None:
            o = attend(q, k, v, valid_up, scattered=self.scattered)
        else:
            q, k, v = (y.reshape(-1, self.slots, *y.shape[2:]) for y in (q, k, v))
            # Always the reference: all scores of a unit are hardly more than its queries, because windows are small.
            o = dense_attention(q, k, v, valid_up.reshape(-1, 1, self.slots))
        # Unfused: with the transposition of 65536 patches fused into it, XLA:GPU finds no tiles for the product.
        return self.o_proj(jax.lax.optimization_barrier(o.reshape(u, p, d)))


class VisionMLP(nnx.Module):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))``; all with biases."""

    def __init__(self, config: QwenVisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.mlp_size
        self.gate_proj = Linear(d, f, axes=AXES, bias=True, dtype=dtype, rngs=rngs) if config.gated_mlp else None
        self.up_proj = Linear(d, f, axes=AXES, bias=True, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(f, d, axes=AXES, bias=True, dtype=dtype, rngs=rngs)
        self.act = activation(config.hidden_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        up = self.up_proj(x)
        return self.down_proj(self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up)


class VisionLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: QwenVisionConfig, windowed: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        self.norm1 = norm(config.norm_type, d, eps=NORM_EPS, dtype=dtype)
        self.attention = VisionAttention(config, windowed, dtype=dtype, rngs=rngs)
        self.norm2 = norm(config.norm_type, d, eps=NORM_EPS, dtype=dtype)
        self.mlp = VisionMLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_upd: jax.Array, cos: jax.Array, sin: jax.Array, valid_up: jax.Array, attend: UnitAttend
    ) -> jax.Array:
        x_upd = x_upd + self.attention(self.norm1(x_upd), cos, sin, valid_up, attend)
        return x_upd + self.mlp(self.norm2(x_upd))


class Merger(nnx.Module):
    """The patches of a merge square to one MM token; normed each before, or all together after being joined."""

    def __init__(self, config: QwenVisionConfig, norm_joined: bool = False, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, joined = config.hidden_size, config.hidden_size * config.cell
        self.norm = norm(config.norm_type, joined if norm_joined else d, eps=NORM_EPS, dtype=dtype)
        self.fc1 = Linear(joined, joined, axes=AXES, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(joined, config.out_size, axes=AXES, bias=True, dtype=dtype, rngs=rngs)
        self.act = activation("gelu")
        self.cell, self.norm_joined = config.cell, norm_joined

    def __call__(self, x_upd: jax.Array) -> jax.Array:
        u, p, d = x_upd.shape
        joined = (u, p // self.cell, self.cell * d)
        x = self.norm(x_upd.reshape(joined)) if self.norm_joined else self.norm(x_upd).reshape(joined)
        return self.fc2(self.act(self.fc1(x)))


class QwenVisionTower(nnx.Module):
    """Patches of encode units to MM tokens."""

    def __init__(self, config: QwenVisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        self.patch_embed = Linear(c.patch_values, c.hidden_size, axes=AXES, bias=c.patch_bias, dtype=dtype, rngs=rngs)
        table = (c.position_side**2, c.hidden_size)
        init = jax.nn.initializers.normal(0.02)
        self.positions = param(init(rngs.params(), table, dtype), (None, None)) if c.position_side else None
        windowed = [c.window > 0 and i not in c.full_layers for i in range(c.num_layers)]
        self.layers = nnx.List([VisionLayer(c, w, dtype=dtype, rngs=rngs) for w in windowed])
        self.merger = Merger(c, dtype=dtype, rngs=rngs)
        self.level_mergers = nnx.List([Merger(c, True, dtype=dtype, rngs=rngs) for _ in c.deepstack_layers])
        self.config = config

    def __call__(
        self,
        patches_upv: jax.Array,
        grid_up2: jax.Array,
        valid_up: jax.Array,
        taps: tuple[jax.Array, jax.Array] | None = None,
        attend: UnitAttend = blocked_attention,
    ) -> jax.Array:
        """Run the tower.

        Args:
            patches_upv: normalised, ``v`` being (frames, rows, columns, colours), in the parameters' dtype.
            grid_up2: int, row and column of each patch.
            valid_up: bool, False for padding.
            taps: rows of the table of positions int32 ``[u, p, 4]`` and their weights float32; for towers with one.
            attend: how the patches of a unit attend to one another.

        Returns:
            ``[u, p / merge_size**2, (1 + levels) * out_size]``: each token's embedding, then its DeepStack levels.
        """
        c = self.config
        x_upd = self.patch_embed(patches_upv)
        if self.positions is not None and taps is not None:
            rows, weights = taps
            x_upd = x_upd + (self.positions[...][rows] * weights[..., None]).sum(axis=2).astype(x_upd.dtype)
        cos, sin = axial_rotary(grid_up2, c.head_dim, c.rope_theta)
        levels = []
        for i, layer in enumerate(self.layers):
            x_upd = layer(x_upd, cos, sin, valid_up, attend)
            if i in c.deepstack_layers:
                levels.append(self.level_mergers[c.deepstack_layers.index(i)](x_upd))
        return jnp.concatenate([self.merger(x_upd), *levels], axis=-1)

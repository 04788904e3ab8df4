"""The step functions: pure functions of flat arrays, one jitted program per bucket and instance.

A model is split once into leaves and a recipe (`Split`); programs take the flat leaves, because dispatching a module
costs milliseconds. Every step that changes a pool takes it donated and returns it, so the pool stays the same buffer.

Rows of a prefill or decode step come packed, to keep host-to-device transfers few: see `rows`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import UnitAttend
from epdjax.serving.paged import PagedAttend, PagedRows, PagesAttend
from epdjax.serving.rows import Rows
from epdjax.serving.sampling import NO_TOKEN, Sampled, sample
from epdjax.serving.slots import Slots, last_tokens, put_token

Pools = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """A module without its arrays.

    Attributes:
        graph: static structure.
        tree: how the flat leaves fit in.
    """

    graph: Any
    tree: Any

    @classmethod
    def of(cls, module: nnx.Module) -> tuple["Split", tuple[Any, ...]]:
        """The recipe of a module, and its leaves."""
        graph, state = nnx.split(module)
        leaves, tree = jax.tree.flatten(state)
        return cls(graph, tree), tuple(leaves)

    def join(self, leaves: tuple[Any, ...]) -> Any:
        """The module with these leaves; inside a trace this costs nothing at run time."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, leaves))


def prompt_arrays(model: Any, rows: int, tokens: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and dtypes of what `prefill` takes of a prompt, for a model's config."""
    arrays: dict[str, tuple[tuple[int, ...], Any]] = {
        "tokens": ((rows, tokens), np.int32),
        "mm_rows": ((rows, tokens, model.mm_taps), np.int32),
    }
    if model.mm_taps > 1:
        arrays["mm_weights"] = ((rows, tokens, model.mm_taps), np.float32)
    if model.text.rope.sections:
        arrays["rope"] = ((rows, tokens, 3), np.int32)
    if model.mm_bidirectional:
        arrays["sees"] = ((rows, tokens), np.int32)
    return arrays


def encode(
    split: Split, attend: UnitAttend, leaves: tuple[jax.Array, ...], inputs: Mapping[str, jax.Array]
) -> jax.Array:
    """Encode units of one bucket, every input with a leading unit axis, to MM tokens ``[units, tokens, mm_width]``."""
    return split.join(leaves)(inputs, attend)


def land_mm(mm_pool_rd: jax.Array, shards_und: tuple[jax.Array, ...], rows_un: jax.Array) -> jax.Array:
    """Write MM tokens that have arrived, a piece from each encoder, into a (donated) MM pool; row 0 takes padding."""
    mm_und = jnp.concatenate(shards_und)
    return mm_pool_rd.at[rows_un].set(mm_und.astype(mm_pool_rd.dtype))


def _run(
    split: Split,
    attend_pages: PagesAttend,
    leaves: tuple[jax.Array, ...],
    pools: Pools,
    slots: Slots,
    x_btd: jax.Array,
    ints: jax.Array,
    floats: jax.Array,
    *,
    rope_bt3: jax.Array | None = None,
    sees_bt: jax.Array | None = None,
    levels_btld: jax.Array | None = None,
) -> tuple[Sampled, Pools, Slots]:
    model = split.join(leaves)
    rows = Rows(ints, floats)
    paged = PagedRows(rows.tables, rows.start, rows.length, x_btd.shape[1], pools[0].shape[1], sees_bt)
    attend = PagedAttend(pools, paged, attend_pages)
    positions = paged.positions_bt
    if model.config.rope.sections:
        ahead = (positions + rows.rope_delta[:, None])[..., None]
        positions = jnp.broadcast_to(ahead, (*ahead.shape[:2], 3)) if rope_bt3 is None else rope_bt3
    hidden_btd = model(x_btd, positions, attend, levels_btld)
    last_b = jnp.maximum(rows.length - 1, 0)
    hidden_bd = jnp.take_along_axis(hidden_btd, last_b[:, None, None], axis=1)[:, 0]
    longest = rows.tables.shape[1] * pools[0].shape[1]
    logits_bv = model.logits(hidden_bd)
    sampled = sample(logits_bv, rows, slots, longest)
    slots = put_token(slots, rows.slot, rows.position, sampled.tokens)
    # Where any number of a row's new tokens is not finite its request ends: pools keep finite numbers only.
    sound_bt = jnp.isfinite(hidden_btd).all(axis=-1) | ~paged.valid_bt
    sound_b = sound_bt.all(axis=1) & jnp.isfinite(logits_bv.max(axis=-1))
    tokens_b = jnp.where(sound_b, sampled.tokens, NO_TOKEN)
    return dataclasses.replace(sampled, tokens=tokens_b), tuple(attend.pools), slots


def prefill(
    split: Split,
    attend_pages: PagesAttend,
    leaves: tuple[jax.Array, ...],
    pools: Pools,
    slots: Slots,
    mm_pool_rd: jax.Array,
    prompt: Mapping[str, jax.Array],
    ints: jax.Array,
    floats: jax.Array,
) -> tuple[Sampled, Pools, Slots]:
    """Run prompt chunks; see `rows` for the packed ones.

    Args:
        pools, slots: donated.
        mm_pool_rd: MM tokens on this instance.
        prompt: ``tokens`` int32 ``[b, t]``; ``mm_rows`` int32 ``[b, t, taps]``, rows of `mm_pool_rd` that stand in a
            position, negative where the token itself does. Where the model needs them (see `prompt_arrays`):
            ``mm_weights`` float32 ``[b, t, taps]``, ``rope`` int32 ``[b, t, 3]``, ``sees`` int32 ``[b, t]``.

    Returns:
        (what was sampled after each row's last token, pools, slots with it).
    """
    text_btd = split.join(leaves).embed(prompt["tokens"])
    d = text_btd.shape[-1]
    taps_btkw = jnp.take(mm_pool_rd, jnp.maximum(prompt["mm_rows"], 0), axis=0)
    if "mm_weights" in prompt:
        weights = prompt["mm_weights"][..., None]
        mm_btw = jnp.sum(taps_btkw.astype(jnp.float32) * weights, axis=2).astype(text_btd.dtype)
    else:
        mm_btw = taps_btkw[:, :, 0].astype(text_btd.dtype)
    is_mm = (prompt["mm_rows"][..., 0] >= 0)[..., None]
    x_btd = jnp.where(is_mm, mm_btw[..., :d], text_btd)
    levels = None
    if mm_btw.shape[-1] > d:
        levels = jnp.where(is_mm, mm_btw[..., d:], 0).reshape(*is_mm.shape[:2], -1, d)
    return _run(
        split,
        attend_pages,
        leaves,
        pools,
        slots,
        x_btd,
        ints,
        floats,
        rope_bt3=prompt.get("rope"),
        sees_bt=prompt.get("sees"),
        levels_btld=levels,
    )


def decode(
    split: Split,
    attend_pages: PagesAttend,
    leaves: tuple[jax.Array, ...],
    pools: Pools,
    slots: Slots,
    ints: jax.Array,
    floats: jax.Array,
) -> tuple[Sampled, Pools, Slots]:
    """One step for every sequence: run the token in its slot, sample the next one into it. Pools and slots donated."""
    rows = Rows(ints, floats)
    x_btd = split.join(leaves).embed(last_tokens(slots, rows.slot, rows.start))[:, None]
    return _run(split, attend_pages, leaves, pools, slots, x_btd, ints, floats)


def gather_kv(pools: Pools, blocks_n: jax.Array) -> tuple[jax.Array, ...]:
    """What a KV move takes along: blocks of every layer."""
    return tuple(pool[blocks_n] for pool in pools)


def land_kv(
    pools: Pools, slots: Slots, moved: tuple[jax.Array, ...], blocks_n: jax.Array, last_3m: jax.Array
) -> tuple[Pools, Slots]:
    """Write what was moved into this instance's (donated) pools and slots; padding goes to block 0 and slot 0.

    Args:
        last_3m: int32, of the sequences that are complete now: slot, and position and id of the last token, which is
            not in the KV yet.
    """
    landed = tuple(pool.at[blocks_n].set(some) for pool, some in zip(pools, moved, strict=True))
    return landed, put_token(slots, *last_3m)

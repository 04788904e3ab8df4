"""Any family's model run on a prompt as a whole, without caches, pages or batches: what serving has to agree with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import FULL, AttentionKind, dense_attention
from epdjax.models.lmm import LMM
from epdjax.models.media import EncodeUnit, Prompt

LONGEST = 4096  # MM tokens that the largest unit size must hold


def encode_unit(model: LMM, unit: EncodeUnit, size: int | None = None) -> np.ndarray:
    """MM tokens ``[tokens, mm_width]`` of a unit padded to the smallest declared size that holds it, or to `size`."""
    size = size or min(s for s in model.config.unit_sizes(LONGEST) if s >= unit.size)
    inputs = {}
    for name, (dims, dtype) in model.config.unit_inputs(size).items():
        padded = np.zeros((1, *dims), dtype)
        padded[(0, *(slice(n) for n in unit.inputs[name].shape))] = unit.inputs[name]
        inputs[name] = padded
    assert set(inputs) == set(unit.inputs)
    out = np.asarray(_encode(*_split(model.encoder), inputs))[0]
    assert out.shape == (model.config.unit_tokens(size), model.config.mm_width)
    return out[: unit.tokens] if unit.picks is None else out[unit.picks]


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: Any, state: Any, inputs: Any) -> jax.Array:
    return nnx.merge(graph, state)(inputs)


@functools.lru_cache(maxsize=4)  # splitting takes as long as a small model takes to run
def _split(encoder: nnx.Module) -> tuple[Any, Any]:
    return nnx.split(encoder)


def mm_tokens(model: LMM, prompt: Prompt) -> np.ndarray:
    """What stands in the prompt's MM positions, ``[mm_tokens, mm_width]``."""
    items = [np.zeros((0, model.config.mm_width), np.float32)]
    for item in prompt.media:
        made = np.concatenate([encode_unit(model, unit) for unit in item.units])
        if item.mix is not None:
            made = (made[item.mix.rows] * item.mix.weights[..., None]).sum(1)
        items.append(made)
    return np.concatenate(items)


class Dense:
    """A prompt laid out for a model; `extra` positions are kept for an answer."""

    def __init__(self, model: LMM, prompt: Prompt, extra: int = 0):
        lm, d = model.language_model, model.config.text.hidden_size
        self.model, self.prompt = model, prompt
        t = len(prompt.token_ids)
        mm = mm_tokens(model, prompt)
        x_btd = (
            lm.embed(jnp.asarray(prompt.token_ids))[None]
            .at[0, prompt.mm_positions]
            .set(jnp.asarray(mm[:, :d], lm.embedding[...].dtype))
        )
        self.x_btd = jnp.pad(x_btd, ((0, 0), (0, extra), (0, 0)))
        self.levels: jax.Array | None = None
        if model.config.mm_levels:
            levels = mm[:, d:].reshape(len(mm), model.config.mm_levels, d)
            zeros = jnp.zeros((1, t + extra, model.config.mm_levels, d))
            self.levels = zeros.at[0, prompt.mm_positions].set(levels)
        counted = np.arange(t + extra)
        self.positions = counted[None]
        if model.config.text.rope.sections:
            rope = np.repeat(counted[:, None] + prompt.rope_delta, 3, axis=1)
            if prompt.rope_positions is not None:
                rope[:t] = prompt.rope_positions
            self.positions = rope[None]
        self.sees = counted.copy()
        if prompt.sees is not None:
            self.sees[:t] = prompt.sees

    def attend(self, layer: int, q: Any, k: Any, v: Any, kind: AttentionKind = FULL) -> jax.Array:
        keys, own = jnp.arange(q.shape[1]), jnp.arange(q.shape[1])[:, None]
        mask = keys <= self.sees[:, None]
        if kind.window is not None:
            mask &= keys > own - kind.window
        return dense_attention(q, k, v, mask[None], kind.scale, kind.softcap)

    def logits(self, x_btd: jax.Array) -> jax.Array:
        lm = self.model.language_model
        return lm.logits(lm(x_btd, self.positions, self.attend, self.levels))


def logits(model: LMM, prompt: Prompt) -> np.ndarray:
    """Of every token of the prompt, float32 ``[t, vocab]``."""
    dense = Dense(model, prompt)
    return np.asarray(jax.jit(dense.logits)(dense.x_btd))[0]


def greedy(model: LMM, prompt: Prompt, count: int) -> list[int]:
    """Greedy tokens without a cache: the whole padded sequence is run for every token; no end of sequence."""
    dense, t = Dense(model, prompt, count), len(prompt.token_ids)

    @jax.jit
    def step(x_btd: jax.Array, i: int) -> tuple[jax.Array, jax.Array]:
        token = dense.logits(x_btd)[0, i].argmax()
        return x_btd.at[0, i + 1].set(model.language_model.embed(token)), token

    x_btd, tokens = dense.x_btd, []
    for i in range(t - 1, t - 1 + count):
        x_btd, token = step(x_btd, i)
        tokens.append(int(token))
    return tokens


def assert_close(ours: Any, theirs: Any, relative: float = 1e-4) -> None:
    """Equal up to `relative` of the largest value."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= relative * np.abs(theirs).max()

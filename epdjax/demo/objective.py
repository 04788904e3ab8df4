"""What training minimises: the answers' tokens, and helpers that say directly what is where and where to look.

A small model left alone with question/answer pairs spends most of its time finding out that pictures matter at all. Two
linear heads, used in training only and never exported, shorten that to minutes: one reads from every MM token what has
its centre there and where exactly, one reads from the decoder's middle, at each picture's end, how often everything
occurs. And two attention heads are shown where to look (`epdjax.demo.guides`): without that, questions about positions
stayed at chance for half an hour.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from epdjax.demo.data import CELL_FEATURES, COUNT_FEATURES, WITHOUT_PICTURE, Batch
from epdjax.demo.scenes import MAX_THINGS
from epdjax.models.attention import FULL, MASKED, AttentionKind, dense_attention
from epdjax.models.decoder import LanguageModel
from epdjax.models.families.internvl.model import InternVLConfig, InternVLEncoder
from epdjax.models.lmm import LMM
from epdjax.models.rope import rotary

Params = dict[str, jax.Array]
# Relative to one another. The first two are summed over features, and the counts over many more.
CELL_WEIGHT, COUNT_WEIGHT, LOOK_WEIGHT = 2.0, 0.1, 0.5
GUIDED_LAYERS = (2, 4)  # whose first head learns to look at what is named, and at what comes next
WHERE_WEIGHT = 2.0  # of a centre's distance, in halves of a tile
RARE = -3.0  # initial bias of both heads: most things are not there


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The part of a `Batch` that the jitted step needs, as one pytree."""

    pixels: Any
    cells: Any
    centres: Any
    unit_mask: Any
    tokens: Any
    positions: Any
    segments: Any
    answers: Any
    targets: Any
    weights: Any
    guide_at: Any
    guide_head: Any
    guide_to: Any
    ends: Any
    counts: Any

    @classmethod
    def of(cls, batch: Batch) -> "Arrays":
        """Pick the arrays out of a batch."""
        return cls(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(cls)})


jax.tree_util.register_dataclass(
    Arrays, data_fields=[field.name for field in dataclasses.fields(Arrays)], meta_fields=[]
)


class Objective:
    """The model as a pure function of a flat dict of arrays, and its loss.

    Args:
        config: of the model.
        rngs: for the initial weights.
        aux_weight: weight of the helper losses.
    """

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs, aux_weight: float):
        self.config, self.aux_weight = config, aux_weight
        self.tap = config.text.num_layers // 2
        self._graph, state = nnx.split(LMM(InternVLEncoder, config, rngs=rngs))
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(state)
        self._names = ["/".join(str(key.key) for key in path if hasattr(key, "key")) for path, _ in leaves]
        d = config.text.hidden_size
        self.initial: Params = {name: leaf for name, (_, leaf) in zip(self._names, leaves, strict=True)}
        for head, features in (("cells", CELL_FEATURES + 2), ("counts", COUNT_FEATURES * MAX_THINGS)):
            self.initial[f"aux/{head}/kernel"] = jax.nn.initializers.lecun_normal()(rngs.params(), (d, features))
            self.initial[f"aux/{head}/bias"] = jnp.full((features,), RARE)

    def model(self, params: Params) -> LMM:
        """The module with these weights."""
        return nnx.merge(self._graph, jax.tree.unflatten(self._tree, [params[name] for name in self._names]))

    def _forward(self, params: Params, x: Arrays) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Logits of answers ``[b, a, v]``, MM tokens ``[b, u, m, d]``, tapped states ``[b, t, d]``, looking loss."""
        model = self.model(params)
        b, u = x.pixels.shape[:2]
        mm = model.encoder({"pixels": x.pixels.reshape(b * u, *x.pixels.shape[2:])})
        mm_bmd = mm.reshape(b, -1, mm.shape[-1])
        is_image = x.tokens == self.config.image_token_id
        slot_bt = jnp.where(is_image, jnp.cumsum(is_image, axis=1) - 1, -1)
        words_btd = jax.nn.one_hot(x.tokens, self.config.text.vocab_size) @ model.language_model.embedding[...]
        x_btd = jnp.where(is_image[..., None], _pick(mm_bmd, slot_bt), words_btd)
        hidden, tapped, look = self._decode(model.language_model, x_btd, x)
        return model.language_model.logits(_pick(hidden, x.answers)), mm.reshape(b, u, *mm.shape[1:]), tapped, look

    def _decode(self, lm: LanguageModel, x_btd: jax.Array, x: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``LanguageModel.__call__``, returning also the hidden states of the tapped layer and the guides' loss."""
        mask_bts = segment_mask(x.segments)
        losses: list[jax.Array] = []

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, kind: AttentionKind = FULL) -> jax.Array:
            if layer in GUIDED_LAYERS:
                losses.append(_look_loss(q[:, :, 0], k[:, :, 0], mask_bts, x, GUIDED_LAYERS.index(layer)))
            return dense_attention(q, k, v, mask_bts)

        cos, sin = rotary(x.positions, lm.config.rope, lm.config.head_dim)
        tapped = x_btd
        for i, layer in enumerate(lm.layers):
            tapped = x_btd if i == self.tap else tapped
            x_btd = layer(x_btd, cos, sin, i, attend)
        guides = jnp.maximum(jnp.sum(x.guide_at >= 0), 1)
        return lm.norm(x_btd), tapped, sum(losses, jnp.zeros(())) / guides

    def loss(self, params: Params, x: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, and its parts by name (for the log)."""
        logits, mm_bumd, tapped, look = self._forward(params, x)
        known = x.targets >= 0
        per_token = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(x.targets, 0))
        answer = jnp.sum(per_token * x.weights) / jnp.maximum(jnp.sum(x.weights), 1)
        right = jnp.sum((jnp.argmax(logits, -1) == x.targets) * known) / jnp.maximum(jnp.sum(known), 1)

        cell = self._cell_loss(params, mm_bumd, x)
        has_picture = x.ends >= 0
        counts = _pick(tapped, x.ends) @ params["aux/counts/kernel"] + params["aux/counts/bias"]
        at_least = x.counts[..., None] >= jnp.arange(1, MAX_THINGS + 1)
        per_picture = optax.sigmoid_binary_cross_entropy(counts.reshape(at_least.shape), at_least).sum((-1, -2))
        count = jnp.sum(per_picture * has_picture) / jnp.sum(has_picture)

        loss = answer + self.aux_weight * (CELL_WEIGHT * cell + COUNT_WEIGHT * count + LOOK_WEIGHT * look)
        return loss, {"answer": answer, "token_accuracy": right, "cell": cell, "count": count, "look": look}

    def encoder_loss(self, params: Params, x: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The part of the loss that needs no language model, for the start of the training."""
        b, u = x.pixels.shape[:2]
        mm = self.model(params).encoder({"pixels": x.pixels.reshape(b * u, *x.pixels.shape[2:])})
        cell = self._cell_loss(params, mm.reshape(b, u, *mm.shape[1:]), x)
        return cell, {"cell": cell}

    def _cell_loss(self, params: Params, mm_bumd: jax.Array, x: Arrays) -> jax.Array:
        features = mm_bumd @ params["aux/cells/kernel"] + params["aux/cells/bias"]
        what = jnp.sum(optax.sigmoid_binary_cross_entropy(features[..., :-2], x.cells), -1)
        where = jnp.sum(jnp.abs(features[..., -2:] - x.centres), -1) * jnp.any(x.cells, -1)
        per_unit = jnp.mean(what + WHERE_WEIGHT * where, -1)
        return jnp.sum(per_unit * x.unit_mask) / jnp.sum(x.unit_mask)

    def predict(self, params: Params, x: Arrays) -> jax.Array:
        """Most likely token at every answer position, given the right answer so far: int32 ``[b, a]``."""
        return jnp.argmax(self._forward(params, x)[0], -1)


def _pick(x_btd: jax.Array, index_bn: jax.Array) -> jax.Array:
    """Rows of `x_btd` by index (zeros for -1), ``[b, n, d]``.

    As a product with one-hot rows: the gradient of a gather is a scatter, which XLA runs element by element on a CPU.
    """
    return jax.nn.one_hot(index_bn, x_btd.shape[1], dtype=x_btd.dtype) @ x_btd


def _look_loss(q_bth: jax.Array, k_bth: jax.Array, mask_bts: jax.Array, x: Arrays, head: int) -> jax.Array:
    """Divergence of one head's attention at its guides from where it should look, summed over guides."""
    at_bg = jnp.where(x.guide_head == head, x.guide_at, -1)
    allowed_bgt = _pick(mask_bts.astype(q_bth.dtype), at_bg) > 0
    scores_bgt = jnp.einsum("bgh,bth->bgt", _pick(q_bth, at_bg), k_bth) * q_bth.shape[-1] ** -0.5
    log_weights = jax.nn.log_softmax(jnp.where(allowed_bgt, scores_bgt, MASKED), axis=-1)
    taught = (x.guide_to > 0) & (at_bg >= 0)[..., None]
    target = jnp.where(taught, x.guide_to, 1.0)
    return jnp.sum(jnp.where(taught, target * (jnp.log(target) - log_weights), 0.0))


def segment_mask(segments_bt: jax.Array) -> jax.Array:
    """``[b, t, t]`` bool: earlier tokens of one's own segment and, but for small talk, of the prefix."""
    t = segments_bt.shape[1]
    query, key = segments_bt[:, :, None], segments_bt[:, None, :]
    return jnp.tril(jnp.ones((t, t), bool)) & ((key == query) | ((key == 0) & (query < WITHOUT_PICTURE))) & (key >= 0)


def right_answers(batch: Batch, predicted: np.ndarray) -> np.ndarray:
    """For each question of the batch whether every token of its answer was predicted, bool ``[questions]``.

    Given the right tokens so far each next one was the most likely, so greedy decoding gives exactly this answer.
    """
    right = np.ones(len(batch.kinds), bool)
    wrong = (predicted != batch.targets) & (batch.asked >= 0)
    right[batch.asked[wrong]] = False
    return right

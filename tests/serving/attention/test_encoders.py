"""Every family's encoder with what an instance may hand it, instead of the reference."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from epdjax.models import config_of, family_of, load_model
from epdjax.models.attention import blocked_attention
from epdjax.serving.attention import cudnn
from tests.models.dense import assert_close
from tests.models.families import all_families
from tests.serving.attention.test_wrappers import in_xla

FAMILIES = all_families()
LONGEST = 256  # MM tokens of a unit


def padded_units(folder: Path, module: Any) -> dict[str, np.ndarray]:
    """The inputs of one of the family's units, in a bucket that is larger than it."""
    config = config_of(folder)
    processor = family_of(folder).processor(folder, config)
    units = [unit for said in module.conversations().values() for m in processor.prompt(said).media for unit in m.units]
    unit = min(units, key=lambda unit: unit.size)
    sizes = [size for size in config.unit_sizes(LONGEST) if size >= unit.size]
    inputs = {}
    for name, (dims, dtype) in config.unit_inputs(sizes[min(1, len(sizes) - 1)]).items():
        inputs[name] = np.zeros((1, *dims), dtype)
        inputs[name][(0, *(slice(n) for n in unit.inputs[name].shape))] = unit.inputs[name]
    return inputs


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_encoder_with_cudnn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths say what masks say: where padding is not behind, the encoder says so. JAX's XLA stands in for cuDNN."""
    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla(jax.nn.dot_product_attention))
    FAMILIES[name].make(tmp_path, **next(iter(FAMILIES[name].VARIANTS.values())))
    model: Any = load_model(tmp_path)
    inputs = padded_units(tmp_path, FAMILIES[name])
    graph, state = nnx.split(model.encoder)
    widths = set()

    def watched(q: jax.Array, *rest: jax.Array, **how: bool) -> jax.Array:
        widths.add(q.shape[-1])
        return cudnn.attend_to_unit(q, *rest, **how)

    ours, plain = (
        np.asarray(jax.jit(lambda s, x, a=a: nnx.merge(graph, s)(x, a))(state, inputs))
        for a in (watched, blocked_attention)
    )
    assert widths == set(model.config.encoder_head_dims)
    assert_close(ours, plain, 1e-5)

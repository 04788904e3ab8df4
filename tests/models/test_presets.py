import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from epdjax.mesh.sharding import Submesh
from epdjax.models.checkpoint import on_device
from epdjax.models.families.internvl.model import InternVLConfig
from epdjax.models.presets import PRESETS, parameter_count, preset
from epdjax.models.random_part import random_part
from epdjax.models.registry import FAMILIES, abstract_part
from tests.models.tiny import tiny_hf_config

QUICK = ("InternVL2-1B", "InternVL3-8B")  # the others take seconds each to build, even as shapes
# The published count is of the original; its conversion has 64 more rows in two tables.
PADDED = {"LLaVA-OneVision-7B": 2 * 64 * 3584}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_parameters_are_as_many_as_published(name: str) -> None:
    family, config = preset(name)
    counts = parameter_count(family, config)
    assert counts.keys() == family.parts.keys()
    assert sum(counts.values()) - PADDED.get(name, 0) == PRESETS[name].parameters


def test_every_preset_is_read_by_its_family() -> None:
    for name in PRESETS:
        family, config = preset(name.lower())
        assert family.model_type == PRESETS[name].hf_config["model_type"]
        assert config.unit_sizes(8192) and config.modalities


def test_units_are_those_of_the_papers_models() -> None:
    """64 and 256 tokens for a unit of MiniCPM-V 2.6 and InternVL2."""
    tokens = {name: preset(name)[1].unit_tokens(1) for name in PRESETS if name.startswith(("Mini", "InternVL2"))}
    assert tokens == {"InternVL2-1B": 256, "InternVL2-8B": 256, "InternVL2-26B": 256, "MiniCPM-V-2.6": 64}


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no preset 'GPT-7'; known: Gemma-3-4B, .*Qwen3-VL-8B"):
        preset("GPT-7")


def test_random_parts_are_the_same_wherever_they_are_placed() -> None:
    family, config = FAMILIES["internvl"], InternVLConfig.from_hf(tiny_hf_config(num_layers=1))
    submesh, part = Submesh.of(jax.devices()[:2], tensor=2), "language_model"
    abstract = nnx.state(abstract_part(family, config, part, jnp.bfloat16))
    alone, split = random_part(family, config, part, [on_device(), submesh.sharding], jnp.bfloat16)
    assert jax.tree.structure(alone) == jax.tree.structure(split) == jax.tree.structure(abstract)
    for a, b, shape in zip(jax.tree.leaves(alone), jax.tree.leaves(split), jax.tree.leaves(abstract), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) == (shape.shape, shape.dtype)
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    tables = dict(nnx.to_flat_state(split))
    kernel = tables["layers", 0, "mlp", "up_proj", "kernel"].get_value()
    assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // 2
    assert 0.01 < np.asarray(kernel, np.float32).std() < 0.03
    (other,) = random_part(family, config, part, [on_device()], jnp.bfloat16, seed=1)
    assert not np.array_equal(dict(nnx.to_flat_state(other))["embedding",], tables["embedding",])

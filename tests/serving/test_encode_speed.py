from math import prod

import jax.numpy as jnp
import pytest

from epdjax.models.families.internvl.model import InternVLConfig
from epdjax.models.presets import parameter_count
from epdjax.models.registry import FAMILIES
from epdjax.serving.encode_speed import EncodeSpeed, measure_encode, random_unit
from tests.models.families.minicpmv import hf_config
from tests.models.tiny import tiny_hf_config


def test_an_encode_step_is_counted_and_timed() -> None:
    family, config = FAMILIES["internvl"], InternVLConfig.from_hf(tiny_hf_config())
    speed = measure_encode(family, config, 3, dtype=jnp.float32, repeats=2)
    count = parameter_count(family, config)["encoder"]
    assert (speed.units, speed.size, speed.weights) == (3, 1, 4 * count)
    matrices = 2 * 3 * config.vision.num_positions * config.vision.num_layers * 4 * config.vision.hidden_size**2
    assert matrices < speed.flops < 100 * matrices
    assert speed.seconds > 0 and speed.working > 0


def test_rates() -> None:
    speed = EncodeSpeed(units=13, size=1, flops=26e12, seconds=2.0, weights=1, working=1)
    assert (speed.flops_per_s, speed.units_per_s) == (13e12, 6.5)


@pytest.mark.parametrize("name", ["internvl", "minicpmv"])
def test_units_of_noise_fit_the_encoder(name: str) -> None:
    config = (
        InternVLConfig.from_hf(tiny_hf_config()) if name == "internvl" else FAMILIES[name].read_config(hf_config(), {})
    )
    unit = random_unit(config, 9 if name == "minicpmv" else 1)
    assert {key: (array.shape, array.dtype) for key, array in unit.inputs.items()} == {
        key: (dims, dtype) for key, (dims, dtype) in config.unit_inputs(unit.size).items()
    }
    assert all(prod(array.shape) for array in unit.inputs.values())
    if name == "minicpmv":
        assert unit.inputs["valid"].all()

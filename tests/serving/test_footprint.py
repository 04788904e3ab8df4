import pytest

from epdjax.mesh.targets import target_devices, target_memory
from epdjax.models.presets import parameter_count, preset
from epdjax.serving.config import EngineConfig
from epdjax.serving.footprint import Footprint, footprint

GIB = 2**30


def test_roles_hold_what_they_need() -> None:
    made = Footprint(
        tensor=1,
        parts={"encoder": 2, "language_model": 20},
        steps={"encode": 5, "prefill": 3, "decode": 1},
        mm_pool=4,
        kv_block=10,
        block_size=16,
    )
    assert [made.weights(roles) for roles in ("E", "P", "D", "PD", "EPD")] == [2, 20, 20, 20, 22]
    assert [made.working(roles) for roles in ("E", "P", "D", "PD", "EPD")] == [5, 7, 1, 7, 9]
    assert made.left("P", 100) == 73 and made.kv_tokens("P", 100) == 7 * 16
    assert made.left("EPD", 30) == -1 and made.kv_tokens("EPD", 30) == 0


@pytest.mark.deviceless
@pytest.mark.parametrize(("name", "tensor"), [("InternVL2-1B", 1), ("Qwen2.5-VL-3B", 2)])
def test_published_models_compile_at_full_size(name: str, tensor: int) -> None:
    """Their largest steps for an A100 that is not there: weights are counted, and steps leave room for a KV cache."""
    family, model = preset(name)
    chip = "a100-80g"
    made = footprint(family, model, target_devices(chip, tensor), EngineConfig(model=name, max_units=2))
    counts = parameter_count(family, model)
    assert made.parts["encoder"] == 2 * counts["encoder"]  # bfloat16; every device has it whole
    language = 2 * counts["language_model"] / tensor
    assert language <= made.parts["language_model"] < 1.25 * language  # split, but for norms and odd vocabularies
    assert all(0 < size < 8 * GIB for size in made.steps.values())
    assert made.steps.keys() == {"encode", "prefill", "decode"}
    assert made.left("EPD", target_memory(chip)) > 40 * GIB


def test_memory_of_chips() -> None:
    assert 79 * GIB < target_memory("a100-80g") < 80 * GIB
    assert target_memory("v5e") == 16 * GIB
    with pytest.raises(ValueError, match=r"unknown chip 'abacus'; known: a100-80g"):
        target_memory("abacus")

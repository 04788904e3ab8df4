"""Families that transformers does not have: what the engine answers is what the model says, on every kind of mesh.

The model itself is checked against the outputs of its authors' code (`test_internvl_chat_goldens` and its like).
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from epdjax.models import config_of, family_of, load_model
from epdjax.models.lmm import LMM
from tests.models.dense import greedy
from tests.models.families import all_families
from tests.models.serving_families import MESHES, NEW_TOKENS, OTHER_MESH, answers, describe

CASES = [
    (module, variant)
    for module in all_families().values()
    if not hasattr(module, "reference")
    for variant in module.VARIANTS
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "variant"), CASES, ids=lambda case: getattr(case, "MODEL_TYPE", case))
def test_answers(
    module: ModuleType, variant: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    module.make(tmp_path, **module.VARIANTS[variant])
    model: LMM = load_model(tmp_path)  # type: ignore[assignment]
    processor = family_of(tmp_path).processor(tmp_path, config_of(tmp_path))
    conversations = module.conversations()
    expected = {name: greedy(model, processor.prompt(said), NEW_TOKENS) for name, said in conversations.items()}
    meshes = MESHES if variant == next(iter(module.VARIANTS)) else (OTHER_MESH,)
    describe(record_property, module, variant, "its authors' code", meshes)
    for mesh in meshes:
        assert answers(tmp_path, mesh, conversations) == expected, mesh

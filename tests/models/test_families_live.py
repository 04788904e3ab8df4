"""Every family and variant against transformers itself: numbers, and answers over several meshes."""

from pathlib import Path
from types import ModuleType

import pytest

from epdjax.models import config_of, family_of, load_model
from epdjax.models.lmm import LMM
from tests.models.dense import assert_close, logits, mm_tokens
from tests.models.families import all_families
from tests.models.serving_families import answers

pytestmark = pytest.mark.torch

CASES = [
    (module, variant)
    for module in all_families().values()
    if hasattr(module, "reference")
    for variant in module.VARIANTS
]


@pytest.mark.parametrize(("module", "variant"), CASES, ids=lambda case: getattr(case, "MODEL_TYPE", case))
def test_numbers_and_answers(module: ModuleType, variant: str, tmp_path: Path) -> None:
    module.make(tmp_path, **module.VARIANTS[variant])
    model: LMM = load_model(tmp_path)  # type: ignore[assignment]
    processor = family_of(tmp_path).processor(tmp_path, config_of(tmp_path))
    conversations = module.conversations()
    expected = {}
    for name, messages in conversations.items():
        reference = module.reference(tmp_path, messages)
        prompt = processor.prompt(messages)
        assert prompt.token_ids.tolist() == reference.token_ids.tolist(), name
        if prompt.media:
            assert_close(mm_tokens(model, prompt), reference.mm_tokens)
        assert_close(logits(model, prompt), reference.logits)
        expected[name] = reference.greedy.tolist()
    first = variant == next(iter(module.VARIANTS))
    for mesh in ("1EPD", "1E1P1D", "1E1Px2,1Dx2") if first else ("2E1P1D",):
        assert answers(tmp_path, mesh, conversations) == expected, mesh

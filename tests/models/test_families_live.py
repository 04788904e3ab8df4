"""Every family and variant against transformers itself: numbers, and answers over several meshes."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import transformers
from flax import nnx

from epdjax.models import config_of, family_of, load_model
from epdjax.models.lmm import LMM
from tests.models.dense import assert_close, logits, mm_tokens
from tests.models.families import all_families
from tests.models.serving_families import MESHES, OTHER_MESH, answers, describe

pytestmark = pytest.mark.torch

CASES = [
    (module, variant)
    for module in all_families().values()
    if hasattr(module, "reference")
    for variant in module.VARIANTS
]


@pytest.mark.parametrize(("module", "variant"), CASES, ids=lambda case: getattr(case, "MODEL_TYPE", case))
def test_numbers_and_answers(
    module: ModuleType, variant: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
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
    meshes = MESHES if variant == next(iter(module.VARIANTS)) else (OTHER_MESH,)
    describe(record_property, module, variant, f"transformers {transformers.__version__}", meshes)
    for mesh in meshes:
        assert answers(tmp_path, mesh, conversations) == expected, mesh


@pytest.mark.parametrize(("module", "variant"), CASES, ids=lambda case: getattr(case, "MODEL_TYPE", case))
def test_what_transformers_writes_loads_back(module: ModuleType, variant: str, tmp_path: Path) -> None:
    made, saved = tmp_path / "made", tmp_path / "saved"
    made.mkdir()
    module.make(made, **module.VARIANTS[variant])
    architecture = json.loads((made / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, architecture).from_pretrained(made, output_loading_info=True)
    assert not any(info[trouble] for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    model.save_pretrained(saved)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (made / name).is_file():
            (saved / name).write_bytes((made / name).read_bytes())
    assert config_of(saved) == config_of(made)
    ours, theirs = (nnx.split(load_model(folder))[1] for folder in (made, saved))
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)

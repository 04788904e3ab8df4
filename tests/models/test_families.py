"""Every family against what was recorded of transformers (`record_families`), and against itself, padded otherwise."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from epdjax.models import config_of, family_of, load_model
from epdjax.models.lmm import LMM
from epdjax.models.registry import FAMILIES as REGISTERED
from tests.models.dense import LONGEST, assert_close, encode_unit, logits, mm_tokens
from tests.models.families import all_families
from tests.models.record_families import GOLDENS, WIDTH
from tests.models.serving_families import answers
from tests.models.support_matrix import BEGIN, DOCS, END

FAMILIES = all_families()
JUDGED = [name for name, module in FAMILIES.items() if hasattr(module, "reference")]


class Made:
    """The first variant of a family: folder, model, processor."""

    def __init__(self, module: ModuleType, folder: Path):
        module.make(folder, **next(iter(module.VARIANTS.values())))
        self.module, self.folder = module, folder
        self.model: LMM = load_model(folder)  # type: ignore[assignment]
        self.processor = family_of(folder).processor(folder, config_of(folder))


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(FAMILIES[request.param], tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("made", JUDGED, indirect=True)
def test_numbers_are_those_of_transformers(made: Made) -> None:
    golden = np.load(GOLDENS / f"{made.module.MODEL_TYPE}.npz")
    for name, messages in made.module.conversations().items():
        prompt = made.processor.prompt(messages)
        assert prompt.token_ids.tolist() == golden[f"{name}/token_ids"].tolist(), name
        if prompt.media:
            assert_close(mm_tokens(made.model, prompt)[:, :WIDTH], golden[f"{name}/mm_tokens"])
        assert_close(logits(made.model, prompt)[-1], golden[f"{name}/logits"])


@pytest.mark.parametrize("made", JUDGED, indirect=True)
def test_answers_are_those_of_transformers(made: Made) -> None:
    golden = np.load(GOLDENS / f"{made.module.MODEL_TYPE}.npz")
    given = answers(made.folder, "1E1P1D", made.module.conversations())
    for name, tokens in given.items():
        assert tokens == golden[f"{name}/greedy"].tolist(), name


@pytest.mark.parametrize("made", sorted(FAMILIES), indirect=True)
def test_config_and_processor_agree_on_modalities(made: Made) -> None:
    assert sorted(made.processor.placeholders) == sorted(made.model.config.modalities)


@pytest.mark.parametrize("made", sorted(FAMILIES), indirect=True)
def test_padding_changes_nothing(made: Made) -> None:
    """A unit gives the same MM tokens in every bucket that holds it."""
    sizes = made.model.config.unit_sizes(LONGEST)
    for messages in made.module.conversations().values():
        for unit in {id(u): u for item in made.processor.prompt(messages).media for u in item.units[:2]}.values():
            fitting = [size for size in sizes if size >= unit.size]
            small = encode_unit(made.model, unit, fitting[0])
            for size in fitting[1:3]:
                assert_close(encode_unit(made.model, unit, size), small, 1e-5)


@pytest.mark.parametrize("made", [n for n, module in FAMILIES.items() if hasattr(module, "HUB_NAMES")], indirect=True)
def test_published_layout_loads(made: Made, tmp_path: Path) -> None:
    """Names and config as they are on the hub give the same model as those that transformers 5 writes."""
    tensors = {}
    for name, tensor in load_file(made.folder / "model.safetensors").items():
        for pattern, replacement in made.module.HUB_NAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    for path in made.folder.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config: dict[str, Any] = json.loads((made.folder / "config.json").read_text())
    if hasattr(made.module, "hub_config"):
        config = made.module.hub_config(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config_of(tmp_path) == made.model.config
    ours, published = (nnx.split(model)[1] for model in (made.model, load_model(tmp_path)))
    jax.tree.map(np.testing.assert_array_equal, published, ours)


def test_every_family_is_tested_and_in_the_support_matrix() -> None:
    assert set(FAMILIES) == set(REGISTERED)
    matrix = DOCS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert [name for name in REGISTERED if f"| `{name}` |" not in matrix] == []

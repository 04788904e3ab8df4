"""Whether a head is tied to the embeddings: transformers' defaults, and what a checkpoint holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING

from epdjax.models import config_of, load_model
from epdjax.models.orbax_io import save_converted
from epdjax.models.registry import FAMILIES, family_of
from epdjax.models.tying import TIED_BY_DEFAULT
from tests.models.families import all_families
from tests.models.test_checkpoint import assert_same, values
from tests.models.tiny import make_tiny_checkpoint

JUDGED = [name for name in FAMILIES if name in CONFIG_MAPPING]
FLAGS = (None, False, True)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``config.json`` of a checkpoint of each family that transformers has."""
    texts = {}
    for family in JUDGED:
        folder = tmp_path_factory.mktemp(family)
        module = all_families()[family]
        module.make(folder, **next(iter(module.VARIANTS.values())))
        texts[family] = (folder / "config.json").read_text()
    return texts


@pytest.mark.parametrize("family", JUDGED)
@pytest.mark.parametrize("top", FLAGS)
@pytest.mark.parametrize("inside", FLAGS)
def test_flags_mean_what_they_mean_to_transformers(
    configs: dict[str, str], family: str, top: bool | None, inside: bool | None
) -> None:
    config: dict[str, Any] = json.loads(configs[family])
    for fields, flag in ((config, top), (config.get("text_config", {}), inside)):
        fields.pop("tie_word_embeddings", None)
        if flag is not None:
            fields["tie_word_embeddings"] = flag
    expected = getattr(CONFIG_MAPPING[family].from_dict(config), "tie_word_embeddings", False)
    if family == "qwen2_audio":
        expected = False  # transformers' class has no weights to tie
    if family == "qwen3_vl" and inside and top is None:
        expected = True  # transformers would leave the head as it was drawn
    assert FAMILIES[family].read_config(config, None).text.tie_embeddings == expected


def without_flags(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for fields in (config, config["text_config"]):
        fields.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
@pytest.mark.parametrize("tied", [True, False])
def test_without_flags_the_checkpoint_says_it(tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    """As transformers: tied by default, and where a head is stored it is used."""
    folder = make_tiny_checkpoint(tmp_path / "made", tied=tied, max_shard_bytes=shard_bytes)
    expected = values(load_model(folder))
    without_flags(folder)
    assert config_of(folder).text.tie_embeddings == tied
    model = load_model(folder)
    assert_same(values(model), expected)
    family = family_of(folder)
    assert family.model_type in TIED_BY_DEFAULT
    save_converted(tmp_path / "converted", {part: nnx.state(getattr(model, part)) for part in family.parts}, folder)
    assert config_of(tmp_path / "converted").text.tie_embeddings == tied
    assert_same(values(load_model(tmp_path / "converted")), expected)


def test_a_head_of_a_config_that_ties_it_is_still_compared(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, tied=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = np.zeros((304, 64), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="set it to false"):
        load_model(folder)

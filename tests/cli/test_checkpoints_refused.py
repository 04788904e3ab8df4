"""Checkpoints that cannot be served, as they are out there: `epdjax serve` says in a sentence what a file is and what
to do, ends with 2, and has compiled nothing."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from epdjax.cli import main
from epdjax.models import checkpoint
from epdjax.serving import deployment
from tests.models.families import qwen2_5_vl
from tests.models.tiny import make_tiny_checkpoint

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("whole"), tied=False, max_shard_bytes=60_000)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it began to compile")

    monkeypatch.setattr(deployment, "compile_all", fail)


def said(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["serve", "--model", str(folder), "--mesh", "1EPD", "--port", "0", *arguments]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_tokenizer_is_read_before_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(deployment.Workshop, "load", fail)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    decoder = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    (folder / "tokenizer.json").unlink()
    assert "cannot load a tokenizer from" in said(folder, capsys)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": decoder}))
    assert "the tokenizer's decoder has a step 'CTC', through which text cannot be streamed" in said(folder, capsys)


SMALL = ("tokenizer.json", "tokenizer_config.json", "config.json", "preprocessor_config.json", "generation_config.json")


@pytest.mark.parametrize("name", [*SMALL, "processor_config.json", "chat_template.jinja", checkpoint.INDEX])
def test_git_lfs_pointers(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_text(POINTER)
    text = said(folder, capsys)
    assert name in text and "Git LFS pointer" in text and "run `git lfs pull` in the folder" in text
    assert len(text.strip().splitlines()[-1]) > 40, "one line"


@pytest.mark.parametrize("name", [*SMALL, "processor_config.json", checkpoint.INDEX])
@pytest.mark.parametrize("content", ["", "{", "<!doctype html><html>404</html>"])
def test_files_that_are_not_json(folder: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_text(content)
    text = said(folder, capsys)
    assert str(folder) in text
    if name == "tokenizer.json":
        assert "cannot load a tokenizer" in text
    else:
        assert name in text and ("it is empty" if not content else "is not valid JSON") in text


def test_shards_that_are_pointers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.write_text(POINTER)
    text = said(folder, capsys)
    assert f"Git LFS pointers, not the files that they stand for: {checkpoint.FETCH}: {first.name}" in text
    second.write_text(POINTER)
    assert f"  {first.name}\n  {second.name}" in said(folder, capsys)


def test_shards_that_are_cut_or_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    data = first.read_bytes()
    for size in (0, 5, 100, len(data) - 1):
        first.write_bytes(data[:size])
        text = said(folder, capsys)
        assert f"unreadable files: {first.name}: " in text and "download it again" in text, size
    first.write_bytes(data)
    second.unlink()
    assert f"absent files: {second.name}" in said(folder, capsys)


@pytest.mark.parametrize("weight_map", [None, 5, {"a": 5}, "model.safetensors"])
def test_an_index_of_another_shape(folder: Path, weight_map: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / checkpoint.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert f"{checkpoint.INDEX} names no file for each tensor" in said(folder, capsys)


@pytest.mark.parametrize("names", [("pytorch_model.bin",), ("consolidated.safetensors", "model-00001.gguf")])
def test_weights_of_another_kind(folder: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    for name in names:
        (folder / name).write_bytes(b"PK")
    text = said(folder, capsys)
    assert f"absent files: model.safetensors or {checkpoint.INDEX}; there are {', '.join(names)}, which are not" in text
    assert "save_pretrained(new_folder)" in text


@pytest.mark.parametrize(("dtype", "name"), [(ml_dtypes.float8_e4m3fn, "F8_E4M3"), (np.int8, "I8")])
def test_tensors_of_a_quantised_checkpoint(
    folder: Path, dtype: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    key = next(key for key, tensor in tensors.items() if tensor.ndim == 2)
    tensors[key] = tensors[key].astype(dtype)
    save_file(tensors, path)
    text = said(folder, capsys)
    assert f"as quantised checkpoints have (use the unquantised one): {key}: {name}" in text


def test_what_config_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads = config["text_config"].pop("num_attention_heads")
    (folder / "config.json").write_text(json.dumps(config))
    assert f"config.json in {folder} lacks 'num_attention_heads', which internvl needs" in said(folder, capsys)
    change(folder / "config.json", text_config=[1])
    assert "text_config in " in (text := said(folder, capsys)) and "is not a JSON object" in text
    config["text_config"]["num_attention_heads"] = heads
    change(folder / "config.json", text_config=config["text_config"], downsample_ratio="half")
    assert "have a value of a kind that they cannot have" in said(folder, capsys)


@pytest.mark.parametrize(
    ("make", "field", "value", "says"),
    [
        (
            qwen2_5_vl.make,
            "size",
            {"min_pixels": 3136, "max_pixels": 200704},
            "must have shortest_edge and longest_edge",
        ),
        (qwen2_5_vl.make, "size", {"height": 56, "width": 56}, "must have shortest_edge and longest_edge"),
        (qwen2_5_vl.make, "resample", 99, "cannot prepare a small image"),
        (make_tiny_checkpoint, "resample", 99, "cannot prepare a small image"),
        (make_tiny_checkpoint, "size", {"height": 20, "width": 20}, "makes tiles of (20, 20)"),
    ],
)
def test_processor_settings_that_cannot_work(
    make: Callable[[Path], Any], field: str, value: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    change(tmp_path / "preprocessor_config.json", **{field: value})
    assert says in said(tmp_path, capsys)


def test_templates(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that is no Jinja is refused; where there is none, a warning says where to put one."""
    config = deployment.EngineConfig(model=folder)
    family, model = deployment.family_of(folder), deployment.config_of(folder)
    own = deployment._processor(config, family, model).chat_template
    assert own == (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(ValueError, match="the chat template is not valid Jinja: line 1: "):
        deployment._processor(config, family, model)
    (folder / "chat_template.jinja").unlink()
    with caplog.at_level(logging.WARNING, logger="epdjax"):
        bare = deployment._processor(config, family, model)
    assert bare.chat_template is None
    [record] = [record for record in caplog.records if "has no chat template" in record.message]
    assert f"{folder} has no chat template" in record.message and "chat_template.jinja" in record.message
    caplog.clear()
    file = tmp_path / "mine.txt"
    file.write_text("MINE {{ messages[0]['content'] }}")
    chosen = deployment._processor(deployment.EngineConfig(model=folder, chat_template=file), family, model)
    assert chosen.render([{"role": "user", "content": "hello"}]) == "MINE hello"
    assert not caplog.records
    for name, content, why in (("none", None, "cannot be read"), ("bad", "{{", "is not valid Jinja: line 1")):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=f"chat_template '.*{name}': .*{why}"):
            deployment._processor(
                deployment.EngineConfig(model=folder, chat_template=str(tmp_path / name)), family, model
            )

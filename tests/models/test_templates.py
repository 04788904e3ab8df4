"""Which chat template a folder's is, against transformers' own search."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ProcessorMixin

from epdjax.models.processing.files import load_tokenizer
from epdjax.models.processing.templates import chat_template, read_template
from epdjax.models.reading import POINTER
from tests.models.tiny import write_processor_files

SOURCES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "additional", "tokenizer_config.json")


def write(folder: Path, sources: tuple[str, ...], form: str) -> None:
    """A template, which says where it is from, in each of `sources`; in JSON as a string, a mapping or a list."""

    def value(source: str) -> Any:
        named = {"default": source, "tool_use": "tools"}
        return {
            "string": source,
            "mapping": named,
            "list": [{"name": name, "template": template} for name, template in named.items()],
        }[form]

    write_processor_files(folder, chat_template=None)
    for name in ("processor_config.json", "tokenizer_config.json"):
        if name in sources:
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(settings | {"chat_template": value(name)}))
    if "chat_template.json" in sources:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "chat_template.json"}))
    if "chat_template.jinja" in sources:
        (folder / "chat_template.jinja").write_text("chat_template.jinja")
    if "additional" in sources:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")


@pytest.mark.parametrize("form", ["string", "mapping", "list"])
@pytest.mark.parametrize("sources", [s for n in range(6) for s in itertools.combinations(SOURCES, n)], ids="+".join)
def test_the_order_is_that_of_transformers(tmp_path: Path, sources: tuple[str, ...], form: str) -> None:
    write(tmp_path, sources, form)
    tokenizer = load_tokenizer(tmp_path)
    try:
        settings, _ = ProcessorMixin.get_processor_dict(tmp_path)
    except ValueError:
        with pytest.raises(ValueError, match=r"move the template of the first to chat_template\.jinja"):
            chat_template(tmp_path, tokenizer)
        return
    expected = settings.get("chat_template")
    if expected is None:  # transformers' processors look no further
        expected = "tokenizer_config.json" if "tokenizer_config.json" in sources else None
    elif isinstance(expected, list):
        expected = {one["name"]: one["template"] for one in expected}
    if isinstance(expected, dict):
        expected = expected.get("default")
    assert chat_template(tmp_path, tokenizer) == expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, (), "string")
    tokenizer = load_tokenizer(tmp_path)
    for name, content, why in (
        ("chat_template.jinja", POINTER + b"v1\n", "is a Git LFS pointer"),
        ("chat_template.jinja", b"\xff\xfe", "is not text"),
        ("chat_template.json", b"{", "is not valid JSON"),
        ("chat_template.json", b"{}", "has no 'chat_template'"),
        ("processor_config.json", b"", "it is empty"),
    ):
        path, before = tmp_path / name, (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {why}" if why != "it is empty" else why):
            chat_template(tmp_path, tokenizer)
        path.unlink() if before is None else path.write_bytes(before)
    with pytest.raises(ValueError, match=r"nowhere\.jinja cannot be read: No such file"):
        read_template(tmp_path / "nowhere.jinja")

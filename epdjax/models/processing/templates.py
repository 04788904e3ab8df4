"""Where a checkpoint folder keeps its chat template, found in the order of transformers' ``AutoProcessor``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epdjax.models.reading import read_json, read_text

FILE, LEGACY_FILE, MORE = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
DEFAULT = "default"  # of several templates, the one that is used


def chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The Jinja source of a folder's chat template; None if it has none, or several and no default.

    The processor's own come first: in ``processor_config.json``, in ``chat_template.json``, in ``chat_template.jinja``
    with the folder of additional ones. transformers' processors look no further; here the tokenizer's is used then.

    Raises:
        ValueError: a file that cannot be read, or one template beside others where transformers refuses both.
    """
    return _processor_template(folder) if _has_templates(folder) else _named(tokenizer.chat_template).get(DEFAULT)


def read_template(path: str | Path) -> str:
    """The chat template in a file of any name.

    Raises:
        ValueError: it cannot be read.
    """
    return read_text(Path(path))


def _config(folder: Path) -> Any:
    path = folder / "processor_config.json"
    return read_json(path).get("chat_template") if path.is_file() else None


def _has_templates(folder: Path) -> bool:
    files = (folder / name for name in (FILE, LEGACY_FILE))
    return _config(folder) is not None or any(path.is_file() for path in files) or bool(_additional(folder))


def _additional(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}


def _processor_template(folder: Path) -> str | None:
    additional = _additional(folder)
    if (folder / LEGACY_FILE).is_file():
        if additional:
            raise ValueError(f"{folder} has both {LEGACY_FILE} and {MORE}/: move the template of the first to {FILE}")
        found = read_json(folder / LEGACY_FILE).get("chat_template")
        if found is None:
            raise ValueError(f"{folder / LEGACY_FILE} has no 'chat_template'")
    else:
        found = {name: read_text(path) for name, path in additional.items()}
        if (folder / FILE).is_file():
            found[DEFAULT] = read_text(folder / FILE)
    own = _config(folder)
    return _named(found if own is None else own).get(DEFAULT)


def _named(templates: Any) -> Mapping[str, str]:
    """Templates by name, however a file spells them: one, a mapping, or a list of names and templates."""
    if templates is None or isinstance(templates, str):
        return {DEFAULT: templates} if templates else {}
    if not isinstance(templates, Mapping):
        templates = {one["name"]: one["template"] for one in templates}
    return templates

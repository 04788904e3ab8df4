"""The files of a checkpoint folder: names, reading the small ones, and saying in a sentence what is wrong with one."""

import json
from pathlib import Path
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONVERTED = "epdjax.json"  # marks a folder written by `epdjax.models.orbax_io.save_converted`
POINTER = b"version https://git-lfs.github.com/spec/"
FETCH = "run `git lfs pull` in the folder, or download it again"


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer: a few lines that stand for a large file which was not downloaded."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it cannot be read, is not UTF-8, or is a Git LFS pointer.
    """
    try:
        if is_pointer(path):
            raise ValueError(f"{path} is a Git LFS pointer, not the file that it stands for: {FETCH}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text (UTF-8): {error}; download it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: see `read_text`; or it is not a JSON object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {'it is empty' if not text.strip() else error}; download it again"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value

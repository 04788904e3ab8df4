"""What a checkpoint folder says about text: its tokenizer and end-of-sequence tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerFast

from epdjax.models.processing.sentencepiece import internlm2_tokenizer
from epdjax.models.reading import FETCH, is_pointer, read_json

# What a tokenizer is read from; where the first is there, the others may be missing.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder, safe to call from several threads.

    Code that comes with a checkpoint is never run.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        if _is_foreign(folder) and (folder / "tokenizer.json").is_file():
            # Its class may be code of the checkpoint's own; what it does to text is in tokenizer.json all the same.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        elif _tokenizer_class(folder) == "InternLM2Tokenizer" and (folder / "tokenizer.model").is_file():
            tokenizer = internlm2_tokenizer(folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a file that cannot be parsed is a bare Exception of the tokenizers library
        raise ValueError(_no_tokenizer(folder, error)) from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer in {folder} has no tokenizer.json, which streaming needs")
    # A tokenizer that truncates or pads switches that off and on around calls, which threads would see.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _is_foreign(folder: Path) -> bool:
    """Whether transformers does not have the model, and would say so at length."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") not in CONFIG_MAPPING


def _tokenizer_class(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    return read_json(path).get("tokenizer_class") if path.is_file() else None


def _no_tokenizer(folder: Path, error: Exception) -> str:
    pointers = [path.name for path in map(folder.joinpath, TOKENIZER_FILES) if path.is_file() and is_pointer(path)]
    if pointers:
        return f"cannot load a tokenizer from {folder}: {', '.join(pointers)} stand as Git LFS pointers there; {FETCH}"
    trouble = f"cannot load a tokenizer from {folder}: {' '.join(str(error).split())}"
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        trouble += "; it has a tokenizer.model and no tokenizer.json: convert it to one, which is always read"
    return trouble


def special_token(tokenizer: Any, name: str, default: str) -> str:
    """The added token that the tokenizer calls `name`, or `default`.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    token = getattr(tokenizer, name, None) or default
    if token not in tokenizer.get_added_vocab():
        raise ValueError(f"the tokenizer has no added token {token!r} ({name})")
    return token


def _id_list(value: Any) -> Iterator[int]:
    if value is not None:
        yield from ([value] if isinstance(value, int) else value)


def eos_token_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Every token that any of the folder's files calls an end of sequence."""
    ids = set(_id_list(tokenizer.eos_token_id))
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            settings = read_json(path)
            for section in (settings, settings.get("text_config") or {}):
                ids.update(_id_list(section.get("eos_token_id")))
    return frozenset(ids)

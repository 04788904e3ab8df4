"""What a checkpoint folder says about text: tokenizer, end-of-sequence tokens, chat template."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerFast

from epdjax.models.processing.sentencepiece import internlm2_tokenizer


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
    except (OSError, ValueError, KeyError, ImportError) as error:
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
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") not in CONFIG_MAPPING


def _tokenizer_class(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") if path.is_file() else None


def _no_tokenizer(folder: Path, error: Exception) -> str:
    trouble = f"cannot load a tokenizer from {folder}: {error}"
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
            settings = json.loads(path.read_text(encoding="utf-8"))
            for section in (settings, settings.get("text_config") or {}):
                ids.update(_id_list(section.get("eos_token_id")))
    return frozenset(ids)


def chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The processor's template where there is one, else the tokenizer's."""
    jinja, legacy = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    if legacy.is_file():
        return json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template

"""Tokenizers made of SentencePiece files against SentencePiece itself (see ``tests/goldens/README.md``)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from epdjax.models.processing.files import load_tokenizer
from epdjax.models.processing.sentencepiece import SentencePieceModel

GOLDENS = Path(__file__).parent.parent / "goldens" / "sentencepiece"
IDS = json.loads((GOLDENS / "ids.json").read_text())


def folder_of(folder: Path, name: str, **settings: Any) -> Path:
    shutil.copyfile(GOLDENS / f"{name}.model", folder / "tokenizer.model")
    (folder / "config.json").write_text('{"model_type": "internvl_chat"}')
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True},
            "6": {"content": "<|im_end|>", "special": True},  # [UNUSED_3] in the file
            "560": {"content": "<img>", "special": True},
            "561": {"content": "<quad>", "special": False},
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize("name", list(IDS))
def test_ids_are_those_of_sentencepiece(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, name, added_tokens_decoder={}, add_bos_token=False))
    for text, ids in IDS[name].items():
        assert tokenizer(text).input_ids == ids, text
        if name == "plain" and "▁" not in text:
            assert tokenizer.decode(ids) == text


def test_added_tokens_and_the_beginning(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, "plain"))
    hello, and_more = (IDS["plain"][text] for text in ("Hello there, world!", "12345 67.89%"))
    ids = tokenizer("Hello there, world!<|im_end|><img>12345 67.89%<quad>").input_ids
    assert ids == [1, *hello, 6, 560, *and_more, 561]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello there, world!12345 67.89%<quad>"
    assert set(tokenizer.get_added_vocab()) >= {"<|im_end|>", "<img>", "<quad>"}


def test_ids_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "plain", added_tokens_decoder={"900": {"content": "<img>"}})
    with pytest.raises(ValueError, match="has id 900 after 560 tokens"):
        load_tokenizer(folder)


@pytest.mark.parametrize("damage", [b"", b"\x0a\xff\xff", b"not a model at all", b"\x12\x02\x18\x01"])
def test_files_that_are_no_model_are_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match="not a SentencePiece"):
        SentencePieceModel.read(path)


def test_models_that_rewrite_characters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes((GOLDENS / "plain.model").read_bytes() + b"\x1a\x03\x12\x01x")
    with pytest.raises(ValueError, match="rewrites characters"):
        SentencePieceModel.read(path)

"""SentencePiece BPE models as fast tokenizers, for checkpoints that come without a ``tokenizer.json``.

InternLM2's tokenizer is such a file and a class of the checkpoint's own, whose code is never run here. What the class
does to text is little: it splits at added tokens, puts ``<s>`` in front, and leaves the rest to SentencePiece. Its file
is read here as the protocol buffer it is (``sentencepiece_model.proto``).
"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from epdjax.models.reading import read_json

SPACE = "▁"
NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # types of pieces
BPE = 2  # a type of model


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary; its id is its place in it."""

    text: str
    score: float
    type: int


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a ``tokenizer.model`` says.

    Attributes:
        prefix: a space is put before text.
        squeeze: spaces at the ends are dropped and several in a row made one.
    """

    pieces: tuple[Piece, ...]
    prefix: bool
    squeeze: bool

    @classmethod
    def read(cls, path: Path) -> "SentencePieceModel":
        """Read a file.

        Raises:
            ValueError: not such a file, not a BPE model, or one that rewrites characters.
        """
        try:
            fields = list(_fields(path.read_bytes()))
            pieces = tuple(_piece(value) for number, value in fields if number == 1)
            trainer, normalizer = (dict(_fields(_last(fields, number))) for number in (2, 3))
        except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error!r}") from error
        if trainer.get(3, 1) != BPE or not pieces:
            raise ValueError(f"{path} is not a SentencePiece BPE model; other kinds need a tokenizer.json next to it")
        if normalizer.get(2) or trainer.get(24):
            raise ValueError(f"{path} rewrites characters or puts spaces behind words: it needs a tokenizer.json")
        return cls(pieces, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, 0)
        if (not size and kind != 2) or at + size > len(data):
            raise IndexError(f"a field of kind {kind} and {size} bytes at {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _last(fields: list[tuple[int, Any]], wanted: int) -> bytes:
    return next((value for number, value in reversed(fields) if number == wanted), b"")


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields.get(1, b"").decode("utf-8"), score, fields.get(3, NORMAL))


def internlm2_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with ``tokenizer.model`` and a ``tokenizer_config.json`` of class InternLM2Tokenizer.

    Raises:
        ValueError: see `SentencePieceModel.read`; or added tokens whose ids do not follow the model's.
    """
    config = read_json(folder / "tokenizer_config.json")
    model = SentencePieceModel.read(folder / "tokenizer.model")
    added = {int(i): token for i, token in (config.get("added_tokens_decoder") or {}).items()}
    tokenizer = _tokenizer(model, added)
    names = {
        name: _content(config[name])
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if config.get(name)
    }
    if config.get("add_bos_token", True) and (bos := names.get("bos_token")):
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=config.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **names,
    )


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, Mapping) else token


def _tokenizer(model: SentencePieceModel, added: Mapping[int, Mapping[str, Any]]) -> Tokenizer:
    names = [piece.text for piece in model.pieces]
    for i in sorted(added):  # they take the place of pieces, or come behind them
        if i > len(names):
            raise ValueError(f"added_tokens_decoder has id {i} after {len(names)} tokens: ids must follow one another")
        names[i : i + 1] = [added[i]["content"]]
    vocab = {name: i for i, name in enumerate(names)}
    normal = {
        piece.text: piece.score for i, piece in enumerate(model.pieces) if piece.type == NORMAL and i not in added
    }
    merges = [
        (-score, vocab[text[:cut]], vocab[text[cut:]], text[:cut], text[cut:])
        for text, score in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    unknown = next((names[i] for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for *_, left, right in sorted(merges)],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(piece.type == BYTE for piece in model.pieces),
        )
    )
    squeeze = [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")] * model.squeeze
    prefix = [normalizers.Prepend(SPACE)] * model.prefix
    tokenizer.normalizer = normalizers.Sequence([*squeeze, *prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] * model.prefix
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    whole = [piece.text for i, piece in enumerate(model.pieces) if piece.type == USER_DEFINED and i not in added]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    for token in added.values():
        flags = {name: token.get(name, False) for name in ("lstrip", "rstrip", "single_word", "normalized")}
        made = AddedToken(token["content"], **flags, special=token.get("special", True))
        (tokenizer.add_special_tokens if made.special else tokenizer.add_tokens)([made])
    return tokenizer

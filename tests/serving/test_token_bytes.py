"""The bytes of single tokens, put together, are the bytes of the text, whatever kind the tokenizer is of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from epdjax.models.processing.files import load_tokenizer
from epdjax.serving.sampling import Logprobs
from epdjax.serving.token_bytes import LEAST_LOGPROB, TokenBytes
from epdjax.serving.token_decoder import TokenDecoder
from tests.models.test_sentencepiece import folder_of
from tests.models.tiny import tiny_tokenizer

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], include_characters="thein 日本🙂é\n"), max_size=30)


def metaspace() -> Tokenizer:
    """A tokenizer that writes spaces as U+2581 and knows no bytes."""
    pieces = ["▁", "a", "b", "▁a", "é"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "a")]))
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    return tokenizer


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(folder_of(tmp_path_factory.mktemp("sentencepiece"), "plain")).backend_tokenizer


def joined(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text that the bytes of tokens make."""
    token_bytes = TokenBytes(TokenDecoder(tokenizer))
    return b"".join(token_bytes.text(i)[1] for i in ids).decode()


@given(texts)
def test_byte_level_tokens(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert joined(tokenizer, ids) == tokenizer.decode(ids)
    special = tokenizer.token_to_id("<|im_end|>")
    assert joined(tokenizer, [*ids, special]) == tokenizer.decode(ids) + "<|im_end|>"


@given(text=texts)
def test_sentencepiece_tokens(sentencepiece: Tokenizer, text: str) -> None:
    ids = sentencepiece.encode(text, add_special_tokens=False).ids
    assert any(sentencepiece.id_to_token(i).startswith("<0x") for i in sentencepiece.encode("日").ids)
    if sentencepiece.token_to_id("<unk>") not in ids:
        assert joined(sentencepiece, ids) == sentencepiece.decode(ids)


def test_metaspace_tokens() -> None:
    tokenizer = metaspace()
    assert joined(tokenizer, [3, 2, 0, 4]) == " ab é"


def test_half_characters_and_ids_without_a_token() -> None:
    tokenizer = tiny_tokenizer()
    token_bytes = TokenBytes(TokenDecoder(tokenizer))
    first, *_ = tokenizer.encode("🙂", add_special_tokens=False).ids
    assert token_bytes.text(first) == ("\ufffd", b"\xf0")
    assert token_bytes.text(303) == ("", b"")


def test_an_entry_has_as_many_of_the_likeliest_as_are_asked_for() -> None:
    made = Logprobs(
        np.array([-1.5, -np.inf], np.float32), np.array([[5, 6, 7]] * 2, np.int32), np.array([[-0.5, -1.0, -1.5]] * 2)
    )
    token_bytes = TokenBytes(TokenDecoder(tiny_tokenizer()))
    entry = token_bytes.logprob(7, made, 0, 2)
    assert (entry.token_id, entry.logprob, [top.token_id for top in entry.top]) == (7, -1.5, [5, 6])
    assert token_bytes.logprob(9, made, 1, 0) == token_bytes.logprob(9, made, 1, 0)
    assert token_bytes.logprob(9, made, 1, 0).logprob == LEAST_LOGPROB, "JSON knows no minus infinity"

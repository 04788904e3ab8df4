"""Text that comes token by token, and bytes of single tokens, against `Tokenizer.decode` of the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.token_bytes import TokenBytes
from epdjax.serving.token_decoder import REPLACEMENT, TokenDecoder
from tests.serving.tokenizers_of_all_kinds import BYTES, KINDS, PIECES, with_pieces

DECODERS = {name: TokenDecoder(tokenizer) for name, tokenizer in KINDS.items()}


@st.composite
def answers(draw: st.DrawFn, name: str) -> list[int]:
    """Tokens as a model might sample them: any at all, and characters spelt in bytes, whole and half."""
    tokenizer = KINDS[name]
    anything = st.integers(0, tokenizer.get_vocab_size() + 2).map(lambda i: [i])
    byte = {i: tokenizer.token_to_id(piece) for i, piece in enumerate(BYTES)}
    spelt = st.text(alphabet="aé日🙂 \u0301\ufffd", max_size=3).map(lambda s: s.encode())
    cut = st.tuples(spelt, st.integers(0, 3), st.integers(0, 3)).map(lambda t: t[0][t[1] : len(t[0]) - t[2]])
    if name == "byte-level":
        level = KINDS[name].encode
        of_bytes = st.tuples(spelt, st.integers(0, 3)).map(lambda t: level(t[0].decode()).ids[t[1] :])
    else:
        of_bytes = st.one_of(spelt, cut).map(lambda data: [byte[i] for i in data])
    return [i for some in draw(st.lists(st.one_of(anything, of_bytes), max_size=12)) for i in some]


def decoded(name: str, ids: list[int]) -> str:
    return KINDS[name].decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", list(KINDS))
def test_streamed_text_is_the_decoded_one(name: str) -> None:
    @settings(deadline=None, max_examples=60)
    @given(answers(name))
    def check(ids: list[int]) -> None:
        whole = decoded(name, ids)
        detokenizer, added = Detokenizer(DECODERS[name]), ""
        for token in ids:
            added += detokenizer.push(token)
            assert detokenizer.text == added
            assert whole.startswith(added)
        added += detokenizer.finish()
        assert detokenizer.text == added == whole

    check()


@pytest.mark.parametrize("name", list(KINDS))
def test_a_stop_string_ends_it_as_soon_as_the_decoded_text_has_it(name: str) -> None:
    """Also one within a run of bytes, which may still turn out to be none."""

    @settings(deadline=None, max_examples=60)
    @given(answers(name), st.lists(st.text(alphabet="aé日 🙂th\n", min_size=1, max_size=3), min_size=1, max_size=2))
    def check(ids: list[int], stop: list[str]) -> None:
        detokenizer = Detokenizer(DECODERS[name], stop)
        for count, token in enumerate(ids, start=1):
            so_far = decoded(name, ids[:count])
            detokenizer.push(token)
            found = [at for at in (so_far.find(s) for s in stop) if at >= 0]
            assert detokenizer.stopped == bool(found)
            if found:
                assert detokenizer.text == so_far[: min(found)]
                assert detokenizer.finish() == "" and detokenizer.text == so_far[: min(found)]
                return
        detokenizer.finish()
        assert detokenizer.text == decoded(name, ids)

    check()


@pytest.mark.parametrize("name", list(KINDS))
def test_bytes_of_tokens_are_those_of_the_text(name: str) -> None:
    @settings(deadline=None, max_examples=60)
    @given(answers(name))
    def check(ids: list[int]) -> None:
        token_bytes, detokenizer, data = TokenBytes(DECODERS[name]), Detokenizer(DECODERS[name]), b""
        for token in ids:
            first = not detokenizer.begun
            detokenizer.push(token)
            if DECODERS[name].piece(token, first) is not None:  # special tokens have bytes and are no text
                data += token_bytes.text(token, first)[1]
        detokenizer.finish()
        text = detokenizer.text
        try:
            assert data.decode() == text
        except UnicodeDecodeError:
            assert REPLACEMENT in text

    if name != "two spaces":  # dropped from two tokens there, and a token is told of the first only
        check()


def ids_of(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    return [tokenizer.token_to_id(piece) for piece in pieces]


def shown(name: str, *pieces: str) -> list[str]:
    """What each token adds, then the end."""
    detokenizer = Detokenizer(DECODERS[name])
    return [*map(detokenizer.push, ids_of(KINDS[name], *pieces)), detokenizer.finish()]


def test_runs_of_bytes() -> None:
    """A run is text if all of it is UTF-8; else each byte of it is a U+FFFD, those of whole characters too."""
    spelt = ["<0xE6>", "<0x97>", "<0xA5>"]
    assert shown("gemma", "a", *spelt, "a") == ["a", "", "", "", "日a", ""]
    assert shown("gemma", "a", *spelt) == ["a", "", "", "", "日"]
    assert shown("gemma", *spelt[:2]) == ["", "", REPLACEMENT * 2]
    assert shown("gemma", *spelt[:2], "a") == ["", "", REPLACEMENT * 2 + "a", ""]
    assert shown("gemma", *spelt, "<0xFF>", "<0x61>", "a") == ["", "", "", REPLACEMENT * 4, REPLACEMENT, "a", ""]
    assert shown("gemma", *spelt, "<s>", *spelt) == [""] * 7 + ["日日"]


def test_a_stop_string_of_a_run_that_is_none() -> None:
    """The character was never in the text, though it was looked for before the run broke."""
    pieces = ("<0xE6>", "<0x97>", "<0xA5>", "<0xFF>", "a")
    detokenizer = Detokenizer(DECODERS["gemma"], ["日" + REPLACEMENT])
    assert [detokenizer.push(i) for i in ids_of(KINDS["gemma"], *pieces)] == ["", "", "", REPLACEMENT * 4, "a"]
    assert not detokenizer.stopped
    detokenizer = Detokenizer(DECODERS["gemma"], ["a" + REPLACEMENT])
    assert [detokenizer.push(i) for i in ids_of(KINDS["gemma"], "a", "a", *pieces)] == ["", "a", "", "", "", "", ""]
    assert detokenizer.stopped and detokenizer.text == "a"


def test_a_literal_replacement_character() -> None:
    assert shown("gemma", "a", REPLACEMENT) == ["a", REPLACEMENT, ""]
    assert shown("llama", "▁" + REPLACEMENT, "▁a") == [REPLACEMENT, " a", ""]
    assert shown("byte-level", "a", REPLACEMENT, "Ã") == ["a", REPLACEMENT, "", REPLACEMENT]


def test_the_space_that_is_dropped() -> None:
    assert shown("llama", "<s>", "▁a", "▁a") == ["", "a", " a", ""]
    assert shown("llama", "<0x20>", "<0x20>", "a") == ["", "", " a", ""]
    assert shown("llama", "<0x20>", "<0xFF>", "▁a") == ["", REPLACEMENT * 2, " a", ""]
    assert shown("two spaces", "▁", "▁", "▁a") == ["", "", " a", ""]
    assert shown("metaspace", "▁▁", "▁▁") == ["", "  ", ""]


def test_bytes_at_the_beginning() -> None:
    token_bytes = TokenBytes(DECODERS["llama"])
    (token,) = ids_of(KINDS["llama"], "▁a")
    assert token_bytes.text(token, first=True) == ("a", b"a")
    assert token_bytes.text(token) == (" a", b" a")
    (token,) = ids_of(KINDS["llama"], "<0xE6>")
    assert token_bytes.text(token, first=True) == (REPLACEMENT, b"\xe6")


def test_a_token_costs_the_same_however_long_the_answer_is() -> None:
    """Nothing that is kept, beside the text itself, grows."""
    for name in ("byte-level", "gemma"):
        detokenizer = Detokenizer(DECODERS[name], ["the end", "\n\n\n"])
        tokens = ids_of(KINDS[name], "a", "th") if name == "gemma" else ids_of(KINDS[name], "a", "the")
        for token in tokens * 500:
            assert len(detokenizer.push(token)) <= 3 + len("the end")
            assert len(detokenizer._held) < len("the end") and len(detokenizer._last) < len("the end")
            assert not detokenizer._stream._run


@pytest.mark.parametrize(
    "decoder, named",
    [
        (decoders.CTC(), "'CTC'"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]), "'Replace' in this place"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel()]), "'ByteLevel' in this place"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)]), "'Strip' in this place"),
    ],
)
def test_decoders_that_cannot_be_streamed_are_named(decoder: decoders.Decoder, named: str) -> None:
    with pytest.raises(ValueError, match=f"a step {named}, through which text cannot be streamed"):
        TokenDecoder(with_pieces(decoder, PIECES))

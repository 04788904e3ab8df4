from hypothesis import given
from hypothesis import strategies as st

from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.token_decoder import TokenDecoder
from tests.models.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DECODER = TokenDecoder(TOKENIZER)


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Detokenizer]:
    """What is shown after each token of `text`."""
    detokenizer, shown = Detokenizer(DECODER, stop), []
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        detokenizer.push(token)
        shown.append(detokenizer.text)
        if detokenizer.stopped:
            break
    return shown, detokenizer


plain = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], include_characters="théin the 日本🙂é"), max_size=30
).map(lambda s: TOKENIZER.decode(TOKENIZER.encode(s, add_special_tokens=False).ids))


@given(plain)
def test_text_grows_by_whole_characters(text: str) -> None:
    shown, detokenizer = stream(text)
    assert all(text.startswith(part) for part in shown)
    detokenizer.finish()
    assert detokenizer.text == text


@given(plain, st.lists(st.text(alphabet="thein a日", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_ever_shown(text: str, stop: list[str]) -> None:
    shown, detokenizer = stream(text, tuple(stop))
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    assert detokenizer.stopped == bool(found)
    detokenizer.finish()
    if not found:
        assert detokenizer.text == text
        return
    # Text ends before the stop string that is complete first; what was shown on the way is never taken back.
    assert not any(s in detokenizer.text for s in stop)
    assert text.startswith(detokenizer.text)
    assert all(detokenizer.text.startswith(part) for part in shown)


@given(plain, st.lists(st.text(alphabet="thein a日", min_size=1, max_size=4), max_size=2), st.integers(0, 12))
def test_what_was_not_looked_at_never_stops(text: str, stop: list[str], least: int) -> None:
    """A stop string that ends in the first tokens is text like any other; the next to end after them counts."""
    detokenizer, shown, whole = Detokenizer(DECODER, stop), [""], Detokenizer(DECODER)
    stopped_at = None
    for number, token in enumerate(TOKENIZER.encode(text, add_special_tokens=False).ids, start=1):
        known = len(whole.text)
        whole.push(token)
        detokenizer.push(token, look=number > least)
        ends = {at + len(s) for s in stop for at in range(len(whole.text)) if whole.text.startswith(s, at)}
        if number > least and any(end > known for end in ends):
            stopped_at = number
        assert detokenizer.stopped == (stopped_at is not None)
        assert whole.text.startswith(detokenizer.text) and detokenizer.text.startswith(shown[-1])
        shown.append(detokenizer.text)
        if detokenizer.stopped:
            return
    detokenizer.finish()
    assert detokenizer.text == text


def test_half_characters_wait() -> None:
    detokenizer = Detokenizer(DECODER)
    shown = []
    for token in TOKENIZER.encode("a🙂b", add_special_tokens=False).ids:
        detokenizer.push(token)
        shown.append(detokenizer.text)
    assert shown == ["a", "a", "a", "a", "a🙂", "a🙂b"]


def test_an_unfinished_stop_string_is_text_after_all() -> None:
    shown, detokenizer = stream("in th", ("the",))
    assert shown[-1] == "in "
    detokenizer.finish()
    assert detokenizer.text == "in th"

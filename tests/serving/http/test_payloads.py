"""Media taken out of a body before it is parsed: what comes back is what was sent, to the letter."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.serving.errors import TooLong
from epdjax.serving.http import payloads
from epdjax.serving.http.payloads import LEAST, Payloads
from epdjax.serving.http.protocol import parse_chat_request
from epdjax.serving.http.validation import validate_messages
from epdjax.serving.media.parts import TextBounds
from epdjax.serving.media.sources import DataURL

LONG = base64.b64encode(bytes(range(256)) * 40).decode()
BOUNDS = TextBounds(characters=1000, parts=10)


def user(*parts: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def read(body: bytes) -> tuple[list[dict[str, Any]], Payloads]:
    found = Payloads(body)
    return validate_messages(parse_chat_request(found.json).messages, found), found


def plain(messages: Any) -> Any:
    """Messages with strings in the place of data URLs."""
    if isinstance(messages, DataURL):
        return str(messages)
    if isinstance(messages, dict):
        return {key: plain(value) for key, value in messages.items()}
    return [plain(value) for value in messages] if isinstance(messages, list) else messages


def test_long_base64_is_not_parsed() -> None:
    url = f"data:image/png;base64,{LONG}"
    body = json.dumps(user(image(url), {"type": "text", "text": "and"}, image(url + "A"))).encode()
    messages, found = read(body)
    assert len(found.json) < 500 and len(found._found) == 2
    first, _, second = messages[0]["content"]
    assert isinstance(first["image_url"], DataURL) and first["image_url"].base64.obj is body
    assert str(first["image_url"]) == url and str(second["image_url"]) == url + "A"


def test_input_audio() -> None:
    for data in (LONG, "abcd"):
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}
        messages, found = read(json.dumps(user(part)).encode())
        assert str(messages[0]["content"][0]["audio_url"]) == f"data:audio/mp3;base64,{data}"
        assert len(found._found) == (data == LONG)


@pytest.mark.parametrize("spaces", [(":", ","), (" : ", " , "), (":\n\t", ",\r\n")])
def test_spaces_between_keys_and_values(spaces: tuple[str, str]) -> None:
    part = {"type": "input_audio", "input_audio": {"data": LONG, "format": "wav"}}
    body = json.dumps(user(part), separators=spaces[::-1]).encode()
    messages, found = read(body)
    assert len(found._found) == 1 and str(messages[0]["content"][0]["audio_url"]).endswith(LONG)


def test_a_text_that_looks_like_media_stays_a_text() -> None:
    url = f"data:image/png;base64,{LONG}"
    body = {"model": "m", "messages": [{"role": "user", "content": url}, {"role": "assistant", "content": "x"}]}
    body["messages"] += user({"type": "text", "text": url}, image(url))["messages"]  # type: ignore[operator]
    messages, _ = read(json.dumps(body).encode())
    assert messages[0]["content"] == url and messages[2]["content"][0]["text"] == url


@pytest.mark.parametrize(("character", "escaped"), [("/", "\\/"), ("+", "\\u002B"), ("a", "\\u0061")])
def test_characters_that_other_languages_escape(character: str, escaped: str) -> None:
    url = "data:image/png;base64," + LONG
    body = json.dumps(user(image(url), {"type": "text", "text": "x"})).replace(url, url.replace(character, escaped))
    if character == "a":  # not in the head: nobody escapes letters there
        body = body.replace("d\\u0061t\\u0061:im\\u0061ge/png;b\\u0061se64,", "data:image/png;base64,")
    messages, found = read(body.encode())
    assert len(found._found) == 1 and str(messages[0]["content"][0]["image_url"]) == url


def test_a_byte_order_mark_is_no_error() -> None:
    assert read(b"\xef\xbb\xbf" + json.dumps(user({"type": "text", "text": "a"})).encode())[0]


strings = st.sampled_from(
    [
        "",
        "data",
        '"data',
        "data:",
        "data:image/png;base64,",
        '"data:a;base64,',
        LONG[:LEAST],
        LONG[: LEAST - 1],
        "\\",
        "é",
    ]
)


@given(st.lists(st.lists(strings, max_size=4).map("".join), min_size=1, max_size=5), st.integers(1, 5000))
def test_any_body_means_the_same(texts: list[str], window: int) -> None:
    body = user(*({"type": "text", "text": text} for text in texts), *(image(text) for text in texts if text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "WINDOW", window)
        messages, _ = read(json.dumps(body).encode())
    assert plain(messages) == validate_messages(body["messages"], Payloads(b""))


@given(st.binary(max_size=300) | st.lists(strings.map(str.encode), max_size=6).map(b"".join))
def test_what_is_no_json_is_left_as_it_is(body: bytes) -> None:
    found = Payloads(body)
    assert len(found.json) <= len(body)
    if not found._found:
        assert found.json is body


def test_more_than_the_context_could_hold_is_refused_unparsed() -> None:
    Payloads(b" " * 10_000).check(BOUNDS)
    Payloads(b'"data:image/png;base64,' + b"A" * 10_000_000 + b'"').check(BOUNDS)
    most = BOUNDS.characters + payloads.VALUES_PER_PART * BOUNDS.parts + payloads.MOST_OTHER_VALUES
    for value in (b",", b"[", b"{"):
        Payloads(value * most).check(BOUNDS)
        with pytest.raises(TooLong, match="more text or values than its context could hold"):
            Payloads(value * (most + 1)).check(BOUNDS)
    with pytest.raises(TooLong):
        Payloads(b" " * 2_000_000).check(BOUNDS)

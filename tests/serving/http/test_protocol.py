"""Request bodies: read, or refused in one sentence that names the field."""

import json
from typing import Any

import pytest

from epdjax.serving.errors import InvalidRequest
from epdjax.serving.http.errors import MAX_MESSAGE, request_error_body
from epdjax.serving.http.payloads import Payloads
from epdjax.serving.http.protocol import NEUTRAL, parse_chat_request
from epdjax.serving.http.validation import validate_messages
from epdjax.serving.params import SamplingParams, Urgency

USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "a"}


def parse(**fields: Any) -> Any:
    return parse_chat_request(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def refused(body: bytes | None = None, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        request = parse_chat_request(body) if body is not None else parse(**fields)
        request.sampling_params()
    message = request_error_body(caught.value)["error"]["message"]
    assert len(message) <= MAX_MESSAGE and "\n" not in message
    return caught.value


def test_defaults_and_nulls() -> None:
    plain = parse()
    assert plain.sampling_params() == SamplingParams() and not plain.stream
    names = [
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "n",
        "tools",
        "unheard_of",
    ]
    assert parse(**dict.fromkeys(names)) == plain


def test_every_sampling_field_arrives() -> None:
    params = parse(
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=5,
        seed=-3,
        stop="x",
        stop_token_ids=[4],
        ignore_eos=True,
    ).sampling_params()
    assert params == SamplingParams(9, 0, 5, 0.5, -3, ("x",), (4,), True)
    more = parse(
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={"5": 100, "17": -1.5},
        min_tokens=3,
        n=2,
        logprobs=True,
        top_logprobs=4,
    ).sampling_params()
    assert more == SamplingParams(
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={5: 100, 17: -1.5},
        min_tokens=3,
        n=2,
        logprobs=4,
    )
    assert parse(logprobs=True).sampling_params().logprobs == 0
    assert parse(logprobs=False, top_logprobs=0, logit_bias={}, n=1).sampling_params() == SamplingParams()
    assert parse(max_tokens=4, stop=["a", "b"]).sampling_params() == SamplingParams(max_tokens=4, stop=("a", "b"))
    assert parse(max_tokens=4, max_completion_tokens=4).sampling_params().max_tokens == 4


def test_urgency_arrives() -> None:
    assert parse().urgency("") == Urgency()
    asked = parse(priority=-3, timeout_s=2.5, slo_s=1, user="u")
    assert asked.urgency("10.0.0.1") == Urgency(-3, 2.5, 1, "10.0.0.1", "u")


@pytest.mark.parametrize(
    ("field", "value"), [("priority", 101), ("timeout_s", 0), ("timeout_s", -1), ("slo_s", 0), ("slo_s", 1e9)]
)
def test_urgency_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse(**{field: value}).urgency("")
    assert error.value.param == field


def test_harmless_and_neutral_fields_pass() -> None:
    assert parse(metadata={"a": "b"}, store=False, service_tier="auto") == parse()
    assert parse(**{name: values[0] for name, values in NEUTRAL.items() if values}) == parse()
    assert parse(length_penalty=1.0, best_of=1) == parse()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 2),
        ("use_beam_search", True),
        ("tools", [{}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("echo", True),
        ("guided_json", {}),
        ("chat_template", "x"),
        ("modalities", ["audio"]),
        ("audio", {}),
        ("reasoning_effort", "high"),
        ("prompt_logprobs", 0),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert error.param == name and f"'{name}' is not supported" in error.message


def test_null_says_nothing_in_stream_options_either() -> None:
    assert parse(stream_options={"include_usage": True, "something": None}).stream_options.include_usage is True


def test_typos_are_not_ignored() -> None:
    error = refused(temprature=0)
    assert "did you mean 'temperature'" in error.message and error.param == "temprature"
    assert len(refused(b'{"' + b"x" * 10_000 + b'": 1}').message) < 300
    assert "stream_options.include_usge" in refused(stream_options={"include_usge": True}).message


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e30}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": []}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"top_p": -(10**400)}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": 10**4000}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(10**4000)}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**4000}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [2**40]}, "stop_token_ids"),
        ({"stop_token_ids": "1"}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 17}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 10**4000}, "n"),
        ({"n": True}, "n"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"presence_penalty": "1"}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(2**31): 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"user": 5}, "user"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [USER, 5]}, "messages[1]"),
    ],
)
def test_values_out_of_range_or_type(fields: dict[str, Any], path: str) -> None:
    error = refused(**fields)
    assert path in error.message
    assert (error.param or "").startswith(path)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b"{'model': 1}",
        b'{"model": "m",}',
        b"\xff\xfe{}",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"a": 1} {"b": 2}',
        b"[]",
        b'"x"',
        b"null",
        b"7",
    ],
)
def test_not_json_or_no_object(body: bytes) -> None:
    assert "JSON" in refused(body).message


def check(*messages: Any) -> Any:
    return validate_messages(list(messages), Payloads(b""))


def test_messages_in_one_form() -> None:
    text, url = {"type": "text", "text": "a"}, "data:,"
    checked = check(
        {"role": "developer", "content": "x", "name": "n"},
        {"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]},
        {"role": "assistant", "content": [text], "tool_calls": None, "refusal": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "image", "image": url}]},
    )
    picture = {"type": "image_url", "image_url": url}
    assert checked == [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [text, picture]},
        {"role": "assistant", "content": [text]},
        {"role": "user", "content": [picture, picture]},
    ]
    assert check(USER) == [USER]


def test_what_clients_send_back_of_an_answer_is_taken() -> None:
    answer = {"role": "assistant", "content": "a"}
    echoed = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": []}
    assert check(answer | echoed | {"reasoning_content": "", "reasoning": None, "tool_call_id": ""}) == [answer]
    cached = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    assert check({"role": "user", "content": [cached]}) == [{"role": "user", "content": [TEXT]}]
    assert check(USER | {"something": None}) == [USER]


def part(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "a"}, fields]}


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        ({"content": "x"}, "messages[0].role", "missing"),
        ({"role": "tool", "content": "x"}, "messages[0].role", "'tool' is unknown; use one of system"),
        ({"role": 5, "content": "x"}, "messages[0].role", "unknown"),
        ({"role": ["user"], "content": "x"}, "messages[0].role", "unknown"),
        ({"role": "user"}, "messages[0].content", "missing"),
        ({"role": "user", "content": []}, "messages[0].content", "empty"),
        ({"role": "user", "content": 5}, "messages[0].content", "string or a list"),
        ({"role": "user", "content": {"type": "text"}}, "messages[0].content", "string or a list"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]", "object"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls", "not supported"),
        (part(type="input_audio", input_audio={}), "messages[0].content[1].input_audio.format", "one of wav"),
        (
            part(type="input_audio", input_audio={"format": "wav"}),
            "messages[0].content[1].input_audio.data",
            "missing",
        ),
        (part(type="input_audio", input_audio="x"), "messages[0].content[1].input_audio", "an object"),
        (part(type="video_url", video_url={}), "messages[0].content[1].video_url.url", "has no video"),
        (part(type=["text"]), "messages[0].content[1].type", "not supported"),
        (part(), "messages[0].content[1].type", "not supported"),
        (part(type="text"), "messages[0].content[1].text", "string"),
        (part(type="text", text=None), "messages[0].content[1].text", "string"),
        (part(type="image_url"), "messages[0].content[1].image_url", "no picture"),
        (part(type="image_url", image_url={}), "messages[0].content[1].image_url.url", "no picture"),
        (part(type="image_url", image_url={"url": ""}), "messages[0].content[1].image_url.url", "no picture"),
        (part(type="image_url", image_url=[]), "messages[0].content[1].image_url", "string"),
        (part(type="image_url", image_url={"url": 5}), "messages[0].content[1].image_url.url", "string"),
        (
            part(type="image_url", image_url={"url": "x", "detail": 5}),
            "messages[0].content[1].image_url.detail",
            "auto",
        ),
        (USER | {"nam": "x"}, "messages[0].nam", "not a known field"),
        (USER | {"refusal": "no"}, "messages[0].refusal", "not supported"),
        (USER | {"annotations": [{}]}, "messages[0].annotations", "not supported"),
        (USER | {"function_call": {}}, "messages[0].function_call", "not supported"),
        (part(type="text", text="a", txt="b"), "messages[0].content[1].txt", "did you mean 'text'"),
        (part(type="image_url", image_url="x", uuid="u"), "messages[0].content[1].uuid", "not a known field"),
        (
            part(type="image_url", image_url={"url": "x", "detial": "low"}),
            "messages[0].content[1].image_url.detial",
            "did you mean 'detail'",
        ),
        (
            part(type="input_audio", input_audio={"format": "wav", "data": "x", "rate": 5}),
            "messages[0].content[1].input_audio.rate",
            "not a known field",
        ),
        ({**part(type="image_url", image_url="x"), "role": "system"}, "messages[0].content[1]", "user messages"),
    ],
)
def test_messages_in_error(message: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(message)
    assert caught.value.param == param
    assert says in caught.value.message and param.split(".")[0] in caught.value.message


def test_no_messages() -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        check()

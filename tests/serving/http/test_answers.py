"""Several answers, log-probabilities and other sampling fields, from OpenAI's client to the real engine and back."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from epdjax.serving.llm import AsyncLLM
from tests.serving.http.servers import RunningServer

MESSAGES: list[Any] = [{"role": "user", "content": "how many of them are in the hat?"}]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """An answer of the tiny model; what OpenAI does not know goes into the body as vLLM's users do it."""
    own = {
        name: fields.pop(name)
        for name in list(fields)
        if name in ("ignore_eos", "min_tokens", "min_p", "top_k", "timeout_s", "priority")
    }
    given = {"model": "tiny", "messages": MESSAGES, "max_tokens": 30, "temperature": 1.5, "seed": 4, **fields}
    return client.chat.completions.create(**given, extra_body={"ignore_eos": True, **own})


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[dict[int, dict[str, Any]], list[Any]]:
    """What a stream says of each choice, put together, and its chunks."""
    choices: dict[int, dict[str, Any]] = {}
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}, **fields))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        if choice.delta.role:
            assert choice.index not in choices
            choices[choice.index] = {"text": "", "logprobs": [], "reason": None}
        known = choices[choice.index]
        assert known["reason"] is None, "nothing follows the end of a choice"
        known["text"] += choice.delta.content or ""
        known["logprobs"] += choice.logprobs.content if choice.logprobs else []
        known["reason"] = choice.finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage
    return choices, chunks


def test_three_answers_at_once_and_streamed(client: openai.OpenAI) -> None:
    whole = create(client, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert whole.usage.completion_tokens == 90
    assert create(client).choices[0].message.content == texts[0]
    assert whole.usage.prompt_tokens == create(client).usage.prompt_tokens
    choices, chunks = streamed(client, n=3)
    assert [choices[index]["text"] for index in range(3)] == texts
    assert all(choice["reason"] == "length" and choice["logprobs"] == [] for choice in choices.values())
    assert chunks[-1].usage.completion_tokens == 90
    order = [chunk.choices[0].index for chunk in chunks[:-1] if chunk.choices[0].delta.content]
    assert order != sorted(order), "choices come as they are made, not one after the other"


def test_answers_of_a_stream_end_for_themselves(client: openai.OpenAI) -> None:
    texts = [choice.message.content for choice in create(client, n=3).choices]
    stop = texts[1][len(texts[1]) // 2 :][:2]
    choices, _ = streamed(client, n=3, stop=stop)
    for index, text in enumerate(texts):
        ends = stop in text
        assert choices[index]["text"] == (text[: text.index(stop)] if ends else text)
        assert choices[index]["reason"] == ("stop" if ends else "length")


def test_logprobs_with_bytes(client: openai.OpenAI, server: RunningServer) -> None:
    """Log-probabilities come for every token, also while a character is incomplete and no text can be shown."""
    assert isinstance(server.engine, AsyncLLM)
    specials = {
        token.content
        for token in server.engine.processor.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    }
    plain = create(client, n=2, max_tokens=60)
    assert all(choice.logprobs is None for choice in plain.choices)
    whole = create(client, n=2, max_tokens=60, logprobs=True, top_logprobs=3)
    choices, _ = streamed(client, n=2, max_tokens=60, logprobs=True, top_logprobs=3)
    for index, choice in enumerate(whole.choices):
        entries = choice.logprobs.content
        assert len(entries) == 60 and choice.message.content == plain.choices[index].message.content
        assert [entry.token for entry in choices[index]["logprobs"]] == [entry.token for entry in entries]
        assert choices[index]["text"] == choice.message.content
        for entry in entries:
            assert entry.logprob <= 0 and bytes(entry.bytes).decode("utf-8", "replace") == entry.token
            ranked = [top.logprob for top in entry.top_logprobs]
            assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)
            assert entry.logprob <= ranked[0] + 1e-6
        made = b"".join(bytes(entry.bytes) for entry in entries if entry.token not in specials)
        assert made.decode("utf-8", "replace").startswith(choice.message.content.rstrip("\ufffd"))
    assert any("\ufffd" in entry.token for entry in entries), "some tokens are no whole characters"


def test_the_chosen_token_alone(client: openai.OpenAI) -> None:
    content = create(client, logprobs=True, temperature=0).choices[0].logprobs.content
    assert len(content) == 30 and all(entry.top_logprobs == [] for entry in content)


def test_bias_penalties_and_least_lengths(client: openai.OpenAI) -> None:
    letter = "x"
    forced = create(client, logit_bias={str(ord(letter) - 33): 100}, max_tokens=7)
    assert forced.choices[0].message.content == letter * 7
    kept = create(client, logit_bias={str(ord(letter) - 33): 100}, max_tokens=7, stop=letter, min_tokens=4)
    assert kept.choices[0].message.content == letter * 4 and kept.usage.completion_tokens == 5
    free = create(client, temperature=0, logprobs=True).choices[0].logprobs.content
    tied = create(client, temperature=0, logprobs=True, presence_penalty=2, frequency_penalty=2)
    assert [entry.token for entry in free] != [entry.token for entry in tied.choices[0].logprobs.content]
    narrow = create(client, min_p=1.0).choices[0].message.content
    assert narrow == create(client, temperature=0).choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"logit_bias": {"304": 1}}, "logit_bias"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"min_tokens": 31}, "min_tokens"),
        ({"min_p": 2}, "min_p"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_values_name_their_field(client: openai.OpenAI, fields: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        create(client, stream=stream, **fields)
    assert error.value.status_code == 400 and error.value.param == param


def test_a_time_limit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        create(client, max_tokens=100, timeout_s=1e-6)
    assert error.value.status_code == 504
    assert "time limit" in str(error.value)
    assert create(client, max_tokens=3, timeout_s=60.0, priority=-1).choices[0].finish_reason == "length"

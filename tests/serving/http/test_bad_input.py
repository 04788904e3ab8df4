"""The whole path: every kind of bad request gets its error while good requests stream on undisturbed."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from epdjax.serving.audit import audit
from epdjax.serving.llm import AsyncLLM
from tests.serving.deployments import eventually
from tests.serving.http.conftest import CONTEXT
from tests.serving.http.pictures import bomb, data_url, encoded, picture
from tests.serving.http.servers import RunningServer

PATH = "/v1/chat/completions"
GOOD_URL = data_url(encoded(picture(seed=3)))
JSON = {"content-type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Bad:
    """A request, and what its error must be and say."""

    name: str
    body: bytes | dict[str, Any]
    says: str
    status: int = 400
    code: str = "invalid_request"
    param: str | None = None


def ask(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def look(*urls: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "what is it?"}, *({"type": "image_url", "image_url": url} for url in urls)]


def bad_picture(name: str, url: str, says: str) -> Bad:
    param = "messages[0].content[1].image_url"
    return Bad(name, ask(look({"url": url})), says, code="invalid_media", param=param)


def bad_number(field: str, value: Any) -> Bad:
    return Bad(f"{field} {str(value)[:12]}", ask("hi", **{field: value}), field, param=field)


def bad_requests() -> Iterator[Bad]:
    png, jpeg = encoded(picture()), encoded(picture(), "JPEG")
    yield Bad("not JSON", b"{'model': 'tiny'}", "not valid JSON")
    yield Bad("no object", b"[1, 2]", "JSON object")
    yield Bad("half JSON", json.dumps(ask("hi")).encode()[:-3], "not valid JSON")
    yield Bad("deep JSON", b"[" * 5_000, "not valid JSON")
    yield Bad("mere brackets", b"[" * 1_000_000, "more text or values", code="context_length_exceeded")
    yield Bad(
        "a long text", ask("x" * 1_000_000), "1000000 characters", code="context_length_exceeded", param="messages"
    )
    yield Bad("no UTF-8", b'{"model": "\xff"}', "not valid JSON")
    yield Bad("body too large", ask("x" * 2**21), "larger than 2097152", 413, "request_too_large")
    yield Bad("unknown model", ask("hi") | {"model": "gpt-7"}, "use 'tiny'", 404, "model_not_found", "model")
    yield Bad("unknown role", {"model": "tiny", "messages": [{"role": "robot", "content": "x"}]}, "use one of system")
    yield Bad("no messages", {"model": "tiny", "messages": []}, "at least one", param="messages")
    yield Bad("messages missing", {"model": "tiny"}, "messages is missing", param="messages")
    yield Bad("audio", ask([{"type": "input_audio", "input_audio": {}}]), "format must be one of")
    sound = [{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}]
    yield Bad("audio for a model of pictures", ask(sound), "takes no audio input; it takes text, image")
    yield Bad("unknown part", ask([{"type": "hologram"}]), "'hologram' is not supported")
    yield Bad("no picture", ask([{"type": "image_url"}]), "has no picture")
    yield Bad("empty picture", ask(look({"url": ""})), "has no picture")
    yield bad_picture("broken base64", "data:image/png;base64,@@@@", "base64")
    yield bad_picture("cut base64", GOOD_URL[:-1], "base64")
    yield bad_picture("not a picture", data_url(b"just some words"), "not a picture")
    yield bad_picture("cut PNG", data_url(png[: len(png) // 2]), "damaged or incomplete")
    yield bad_picture("cut JPEG", data_url(jpeg[: len(jpeg) // 2]), "damaged or incomplete")
    yield bad_picture("1x1", data_url(encoded(picture(1, 1))), "at least 4 pixels")
    yield bad_picture("1x5000", data_url(encoded(picture(1, 5000))), "at least 4 pixels")
    yield bad_picture("4x5000", data_url(encoded(picture(4, 5000))), "200 times")
    yield bad_picture("bomb", data_url(bomb()), "at most 4000000 pixels")
    yield bad_picture("remote", "https://example.com/cat.png", "--allow-remote-media")
    yield bad_picture("metadata", "http://169.254.169.254/latest/meta-data", "--allow-remote-media")
    yield bad_picture("file", "file:///etc/passwd", "--allowed-local-media-path")
    yield Bad("4 pictures", ask(look(*[GOOD_URL] * 4)), "at most 3", code="invalid_media", param="messages")
    long = "a" * 4 * CONTEXT
    yield Bad("long prompt", ask(long), f"context of {CONTEXT}", code="context_length_exceeded")
    yield Bad("long answer", ask("hi", max_tokens=CONTEXT), "lower max_tokens", code="context_length_exceeded")
    for field in ("temperature", "top_p", "top_k", "max_tokens", "seed"):
        for value in (-(10**40), 10**40, -1e300, 1e300, "1", True):
            yield bad_number(field, value)
    for field in ("temperature", "top_p", "max_tokens"):
        yield bad_number(field, -1)
    for field in ("n", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "top_logprobs"):
        yield bad_number(field, 10**40)
        yield bad_number(field, -5)
    yield Bad(
        "not a number", b'{"model": "tiny", "messages": [], "temperature": NaN}', "temperature", param="temperature"
    )
    yield bad_number("stop_token_ids", [-1])
    yield bad_number("stop", [""] * 3)
    yield Bad("typo", ask("hi", temprature=1), "'temperature'", param="temprature")


class GoodClient(threading.Thread):
    """Streams one request again and again until told to stop; keeps every answer."""

    def __init__(self, url: str, content: Any, seed: int):
        super().__init__()
        self._url, self._content, self._seed = url, content, seed
        self.enough = threading.Event()
        self.answers: list[tuple[str, str, int]] = []
        self.error: BaseException | None = None

    def once(self) -> tuple[str, str, int]:
        """Text, finish reason and number of tokens."""
        with openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            stream = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": self._content}],
                max_completion_tokens=60,
                temperature=1.0,
                seed=self._seed,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reason = next(c.choices[0].finish_reason for c in reversed(chunks) if c.choices)
        usage = chunks[-1].usage
        assert reason is not None and usage is not None
        return text, reason, usage.completion_tokens

    def run(self) -> None:
        try:
            while not self.enough.is_set() or len(self.answers) < 2:
                self.answers.append(self.once())
        except BaseException as error:
            self.error = error


def check(bad: Bad, response: httpx.Response) -> None:
    assert response.status_code == bad.status, f"{bad.name}: {response.status_code} {response.text}"
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert bad.says in error["message"], f"{bad.name}: {error}"
    assert error["code"] == bad.code and error["type"] == "invalid_request_error", f"{bad.name}: {error}"
    assert bad.param is None or error["param"] == bad.param, f"{bad.name}: {error}"
    assert len(error["message"]) < 400 and "0x" not in error["message"].replace("0x5000", "").replace("50000x", "")


def engine(server: RunningServer) -> AsyncLLM:
    assert isinstance(server.engine, AsyncLLM)
    return server.engine


def assert_idle(server: RunningServer) -> None:
    scheduler = engine(server)._engine.scheduler
    eventually(lambda: scheduler.idle)
    audit(scheduler)
    assert all(pool.held == 0 for ledger in scheduler.instances.values() for pool in ledger.pools.values())
    health = httpx.get(server.url + "/health")
    assert health.status_code == 200
    state = health.json()
    assert state["status"] == "ready" and state["active_requests"] == 0 and not any(state["requests"].values())


@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_disturb_nobody(server: RunningServer, stream: bool) -> None:
    contents: list[Any] = [
        "hello there",
        look(GOOD_URL),
        look(data_url(encoded(picture(90, 40, seed=1), "JPEG"), "image/jpeg")),
    ]
    clients = [GoodClient(server.url, content, seed) for seed, content in enumerate(contents)]
    undisturbed = [client.once() for client in clients]
    assert {(reason, tokens) for _, reason, tokens in undisturbed} == {("length", 60)}
    assert len({text for text, _, _ in undisturbed if len(text) > 5}) == 3
    for client in clients:
        client.start()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for bad in bad_requests():
            if isinstance(bad.body, dict):
                check(bad, http.post(PATH, json=bad.body | {"stream": stream}))
            else:
                check(bad, http.post(PATH, content=bad.body, headers=JSON))
    for client in clients:
        client.enough.set()
        client.join()
        assert client.error is None
    for client, alone in zip(clients, undisturbed, strict=True):
        assert set(client.answers) == {alone}
    assert_idle(server)


def test_a_client_that_leaves_frees_its_blocks(server: RunningServer) -> None:
    for content in ("hello", look(GOOD_URL)):
        body = ask(content, stream=True, max_tokens=CONTEXT - 100, ignore_eos=True)
        with httpx.stream("POST", server.url + PATH, json=body, timeout=60) as response:
            assert response.status_code == 200, response.read()
            lines = response.iter_lines()
            next(lines)
            assert not engine(server)._engine.scheduler.idle, list(lines)[-4:]
        assert_idle(server)
    with pytest.raises(httpx.ReadTimeout):
        body = ask(look(GOOD_URL), max_tokens=CONTEXT - 100, ignore_eos=True)
        httpx.post(server.url + PATH, json=body, timeout=httpx.Timeout(30, read=0.05))
    assert_idle(server)


def test_a_long_answer_that_streams_equals_one_that_does_not(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        content: Any = look(GOOD_URL)
        messages: Any = [{"role": "user", "content": content}]
        settings: Any = {"model": "tiny", "messages": messages, "temperature": 0, "max_completion_tokens": 50}
        whole = client.chat.completions.create(**settings)
        pieces = [c for c in client.chat.completions.create(stream=True, **settings) if c.choices]
    assert (
        whole.usage is not None
        and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason

"""The server's conversation with its clients, with a scripted engine behind it."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from epdjax.serving.http.server import bind
from tests.serving.deployments import eventually
from tests.serving.http.pictures import data_url, encoded, picture
from tests.serving.http.scripted import ScriptedEngine
from tests.serving.http.servers import RunningServer, running

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    with running(ScriptedEngine()) as server:
        yield server


@pytest.fixture
def client(shared: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared.url, timeout=20) as client:
        yield client


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def engine(server: RunningServer) -> ScriptedEngine:
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine


def test_the_openai_client_reads_an_answer(shared: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "count 4"}])
        assert answer.choices[0].message.content == "tok0 tok1 tok2 tok3 "
        assert answer.choices[0].finish_reason == "stop" and answer.id.startswith("chatcmpl-")
        assert answer.usage and (
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
            answer.usage.total_tokens,
        ) == (7, 4, 11)
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert client.models.retrieve("scripted").owned_by == "epdjax"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other/model")


def test_a_stream_in_order_with_usage(client: httpx.Client) -> None:
    body = ask("count 3 slow", stream=True, stream_options={"include_usage": True})
    with client.stream("POST", PATH, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        got = events(response)
    deltas = [event["choices"][0]["delta"] for event in got[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, *({"content": f"tok{i} "} for i in range(3)), {}]
    assert [event["choices"][0]["finish_reason"] for event in got[:-1]] == [None] * 4 + ["stop"]
    assert all(event["usage"] is None for event in got[:-1])
    assert got[-1]["choices"] == []
    assert got[-1]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert len({event["id"] for event in got}) == 1 and {event["object"] for event in got} == {"chat.completion.chunk"}


def test_a_stream_without_usage_and_with_usage_everywhere(client: httpx.Client) -> None:
    with client.stream("POST", PATH, json=ask("count 2", stream=True)) as response:
        assert not any("usage" in event for event in events(response))
    body = ask("count 2", stream=True, stream_options={"continuous_usage_stats": True})
    with client.stream("POST", PATH, json=body) as response:
        assert [event["usage"]["completion_tokens"] for event in events(response)] == [1, 1, 2, 2]


def test_pictures_reach_the_engine_in_order(client: httpx.Client) -> None:
    urls = [data_url(encoded(picture(w, 9))) for w in (31, 17)]
    parts = [{"type": "text", "text": "sizes"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    answer = client.post(PATH, json={"model": "scripted", "messages": [{"role": "user", "content": parts}]}).json()
    assert answer["choices"][0]["message"]["content"] == "31x9 17x9 "


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("broken", 500, "step_failed"),
        ("overloaded", 429, "overloaded"),
        ("bug", 500, "internal_error"),
        ("aborted", 500, "step_failed"),
    ],
)
def test_errors_before_the_first_token(client: httpx.Client, text: str, status: int, code: str) -> None:
    for stream in (False, True):
        if text == "aborted" and stream:
            continue
        response = client.post(PATH, json=ask(text, stream=stream))
        assert response.status_code == status
        assert response.json()["error"]["code"] == code and "secret" not in response.text
        assert response.headers.get("retry-after") == ("3" if status == 429 else None)


@pytest.mark.parametrize(
    ("text", "code"), [("broken-later", "step_failed"), ("bug-later", "internal_error"), ("aborted", "step_failed")]
)
def test_errors_in_a_stream_are_its_last_event(shared: RunningServer, text: str, code: str) -> None:
    with httpx.stream("POST", shared.url + PATH, json=ask(text, stream=True)) as response:
        assert response.status_code == 200
        got = events(response)
    assert got[0]["choices"][0]["delta"]["role"] == "assistant"
    assert got[-1]["error"]["code"] == code and "secret" not in json.dumps(got)
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": text}], stream=True
        )
        with pytest.raises(openai.APIError):
            list(stream)


@pytest.mark.parametrize("text", ["late", "stuck"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_everything(shared: RunningServer, text: str, stream: bool) -> None:
    before = len(engine(shared).closed_early)
    body = json.dumps(ask(text, stream=stream)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(httpx.URL(shared.url).netloc.decode().split(":")) as connection:  # type: ignore[arg-type]
        connection.sendall(head.encode() + body)
        eventually(lambda: bool(engine(shared).running))
    eventually(lambda: not engine(shared).running and not shared.service.gate.active)
    assert len(engine(shared).closed_early) == before + 1


def test_a_client_that_leaves_in_the_middle_of_its_body(shared: RunningServer) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(httpx.URL(shared.url).netloc.decode().split(":")) as connection:  # type: ignore[arg-type]
        connection.sendall(head.encode() + b"{")
        eventually(lambda: shared.service.gate.active == 1)
    eventually(lambda: shared.service.gate.active == 0)
    assert shared.service.gate.bodies.used == 0


def test_bodies_over_the_limit(shared: RunningServer, client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    body = b'{"a": "' + b"x" * (shared.engine.limits.max_body_bytes + 10) + b'"}'
    for content in (body, (body[i : i + 65536] for i in range(0, len(body), 65536))):
        response = client.post(PATH, content=content, headers=headers)
        assert response.status_code == 413 and "2097152" in response.json()["error"]["message"]
    assert shared.service.gate.bodies.used == 0


def test_large_bodies_within_the_limit(client: httpx.Client) -> None:
    body = ask("count 2")
    body["messages"].insert(0, {"role": "system", "content": "x" * 1_000_000})
    assert client.post(PATH, json=body).status_code == 200


def test_every_other_path_fails_in_the_same_shape(client: httpx.Client) -> None:
    checks = [
        (client.get("/nope"), 404, "not_found"),
        (client.get(PATH), 405, "method_not_allowed"),
        (client.delete("/v1/models"), 405, "method_not_allowed"),
        (client.get("/v1/models/else"), 404, "model_not_found"),
        (client.post(PATH, content=b"{}"), 415, "unsupported_media_type"),
        (client.post(PATH, data={"a": "b"}), 415, "unsupported_media_type"),
        (client.post(PATH, json=ask("x") | {"model": "gpt"}), 404, "model_not_found"),
    ]
    for response, status, code in checks:
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
    assert "'scripted'" in checks[-1][0].json()["error"]["message"]
    assert "POST" in checks[1][0].json()["error"]["message"]


def test_responses_do_not_wait_for_acknowledgements() -> None:
    for host in ("127.0.0.1", "localhost"):
        with bind(host, 0) as listener:
            assert listener.proto == socket.IPPROTO_TCP
            listener.listen()
            with pytest.raises(OSError, match="in use"):
                bind(host, listener.getsockname()[1])


def test_small_pages(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ready", "active_requests": 0, "running": 0}
    assert client.get("/version").json()["version"]
    assert client.get("/").json()["model"] == "scripted"
    schema = client.get("/openapi.json").json()["paths"][PATH]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert "temperature" in schema["properties"] and "$ref" not in json.dumps(schema)
    assert "access-control-allow-origin" not in client.options(PATH, headers={"origin": "https://evil.test"}).headers


def test_draining_finishes_what_runs_and_refuses_the_rest() -> None:
    with running(ScriptedEngine()) as server:
        got: list[Any] = []

        def read() -> None:
            with httpx.stream(
                "POST", server.url + PATH, json=ask("count 40 slow", stream=True), timeout=20
            ) as response:
                got.extend(events(response))

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: bool(engine(server).running))
        server.begin_stop()
        eventually(lambda: server.service.gate.draining)
        health = httpx.get(server.url + "/health")
        assert health.status_code == 503 and health.json()["status"] == "draining"
        refused = httpx.post(server.url + PATH, json=ask("count 1"))
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "service_unavailable"
        reader.join()
        assert len(got) == 42 and got[-1]["choices"][0]["finish_reason"] == "stop"
        assert server.join() == 0
        assert engine(server).shutdowns == [True]
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


def test_what_does_not_finish_in_time_gets_an_error() -> None:
    with running(ScriptedEngine(), drain_timeout_s=0.2) as server:
        with httpx.stream("POST", server.url + PATH, json=ask("stuck", stream=True), timeout=20) as response:
            eventually(lambda: bool(engine(server).running))
            server.begin_stop()
            assert events(response)[-1]["error"]["code"] == "service_unavailable"
        assert server.join() == 1
        assert engine(server).shutdowns == [False]

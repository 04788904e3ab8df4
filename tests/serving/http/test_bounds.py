"""What one client, or many, can make the server hold: never more than its limits say."""

import contextlib
import socket
from typing import Any

import httpx

from epdjax.serving.limits import ServingLimits
from tests.serving.deployments import eventually
from tests.serving.http.scripted import ScriptedEngine
from tests.serving.http.servers import RunningServer, running

PATH = "/v1/chat/completions"


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}


def connect(server: RunningServer) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 0), timeout=10)


def head(length: int) -> bytes:
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def assert_overloaded(response: httpx.Response) -> None:
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_requests_at_a_time() -> None:
    engine = ScriptedEngine(ServingLimits(max_active_requests=1))
    with (
        running(engine) as server,
        httpx.stream("POST", server.url + PATH, json=ask("stuck", stream=True)) as first,
    ):
        assert first.status_code == 200
        assert_overloaded(httpx.post(server.url + PATH, json=ask("count 1")))
        first.close()
        eventually(lambda: server.service.gate.active == 0)
        assert httpx.post(server.url + PATH, json=ask("count 1")).status_code == 200


def test_bytes_at_a_time() -> None:
    engine = ScriptedEngine(ServingLimits(max_buffered_bytes=10_000))
    with running(engine) as server, connect(server) as slow:
        slow.sendall(head(8000) + b"x" * 7000)
        eventually(lambda: server.service.gate.bodies.used == 7000)
        assert_overloaded(httpx.post(server.url + PATH, json=ask("x" * 5000)))
        assert httpx.post(server.url + PATH, json=ask("x" * 1000)).status_code == 200
        slow.close()
        eventually(lambda: server.service.gate.bodies.used == 0)
        assert httpx.post(server.url + PATH, json=ask("x" * 5000)).status_code == 200


def test_bytes_are_given_back_before_the_answer_ends() -> None:
    with (
        running(ScriptedEngine()) as server,
        httpx.stream("POST", server.url + PATH, json=ask("stuck", stream=True)) as response,
    ):
        assert response.status_code == 200
        assert server.service.gate.active == 1 and server.service.gate.bodies.used == 0


def test_a_body_that_does_not_arrive() -> None:
    with running(ScriptedEngine(ServingLimits(receive_timeout_s=0.2))) as server, connect(server) as slow:
        slow.sendall(head(100) + b"{")
        eventually(lambda: server.service.gate.active == 1)
        eventually(lambda: server.service.gate.active == 0)
        slow.sendall(b"x" * 99)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b"request_timeout" in answer


def test_a_client_that_does_not_read() -> None:
    engine = ScriptedEngine(ServingLimits(stall_timeout_s=0.3))
    body = httpx.Request("POST", "http://x", json=ask("big count 80", stream=True)).content
    with running(engine) as server, connect(server) as idle:
        idle.sendall(head(len(body)) + body)
        eventually(lambda: len(engine.closed_early) == 1)
        eventually(lambda: server.service.gate.active == 0 and len(server.connections) == 0)


def test_a_client_that_reads_nothing_on_any_path() -> None:
    with running(ScriptedEngine(ServingLimits(stall_timeout_s=0.3, max_connections=1))) as server:
        with connect(server) as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.settimeout(0.2)
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    idle.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            eventually(lambda: len(server.connections) == 0)
        assert httpx.get(server.url + "/live").status_code == 200


def test_a_client_that_waits_for_a_word_is_refused_at_once() -> None:
    with running(ScriptedEngine()) as server, connect(server) as client:
        start = head(100).replace(b"application/json", b"text/plain").removesuffix(b"\r\n")
        client.sendall(start + b"Expect: 100-continue\r\n\r\n")
        client.settimeout(4)  # the server would wait five seconds for a body
        assert client.recv(65536).startswith(b"HTTP/1.1 415")


def test_what_is_no_http_gets_an_error_of_the_usual_form() -> None:
    with running(ScriptedEngine()) as server, connect(server) as client:
        client.sendall(b"hello there\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 400") and b'"error"' in answer and b"application/json" in answer


def test_a_client_that_does_not_read_an_answer_in_one_piece() -> None:
    engine = ScriptedEngine(ServingLimits(stall_timeout_s=0.3))
    body = httpx.Request("POST", "http://x", json=ask("big count 80")).content
    with running(engine) as server, connect(server) as idle:
        idle.sendall(head(len(body)) + body)
        eventually(lambda: len(engine.seen) == 1)
        eventually(lambda: len(server.connections) == 0)  # it is closed although the client has not read its answer


def test_admin_looks_at_the_key_before_it_reads_a_body() -> None:
    with running(ScriptedEngine(), admin_key="k") as server, connect(server) as client:
        # The body that is announced never comes: the answer does not wait for it.
        start = "POST /admin/roles HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
        client.sendall(f"{start}\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
    with running(ScriptedEngine(), admin_key="k") as server:
        headers = {"authorization": "Bearer k", "content-type": "application/json"}
        answer = httpx.post(server.url + "/admin/roles", content=b" " * 5000, headers=headers)
        assert answer.status_code == 413 and "4096 bytes" in answer.json()["error"]["message"]


def test_encoded_bodies_are_refused() -> None:
    with running(ScriptedEngine()) as server:
        body = httpx.Request("POST", "http://x", json=ask("count 1")).content
        for encoding, status in (("gzip", 415), ("br", 415), ("identity", 200), ("", 200)):
            headers = {"content-type": "application/json", "content-encoding": encoding}
            answer = httpx.post(server.url + PATH, content=body, headers=headers)
            assert answer.status_code == status, encoding
            assert status == 200 or "Content-Encoding" in answer.json()["error"]["message"]


def test_texts_over_the_bound() -> None:
    engine = ScriptedEngine()
    with running(engine) as server:
        engine.most_characters = 1000
        answer = httpx.post(server.url + PATH, json=ask("x" * 1001))
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        parts = [{"type": "text", "text": "a"}] * engine.text_bounds.parts
        answer = httpx.post(server.url + PATH, json=ask("a") | {"messages": [{"role": "user", "content": parts}]})
        assert answer.status_code == 400 and "1000 messages and parts" in answer.json()["error"]["message"]
        assert not engine.seen

"""What one client, or many, can make the server hold: never more than its limits say."""

import asyncio
import socket
import threading
from typing import Any

import httpx
import pytest

from epdjax.serving.http.decoding import DecodingPool
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
        eventually(lambda: server.service.gate._buffered == 7000)
        assert_overloaded(httpx.post(server.url + PATH, json=ask("x" * 5000)))
        assert httpx.post(server.url + PATH, json=ask("x" * 1000)).status_code == 200
        slow.close()
        eventually(lambda: server.service.gate._buffered == 0)
        assert httpx.post(server.url + PATH, json=ask("x" * 5000)).status_code == 200


def test_bytes_are_given_back_before_the_answer_ends() -> None:
    with (
        running(ScriptedEngine()) as server,
        httpx.stream("POST", server.url + PATH, json=ask("stuck", stream=True)) as response,
    ):
        assert response.status_code == 200
        assert server.service.gate.active == 1 and server.service.gate._buffered == 0


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
        eventually(lambda: server.service.gate.active == 0)


def test_threads_and_their_queue() -> None:
    engine = ScriptedEngine(ServingLimits(media_workers=1, max_waiting_media=0))
    with running(engine) as server:
        pool: DecodingPool = server.service.pool
        with pool._lock:
            pool._pending += 1
        picture = {"type": "image_url", "image_url": "data:image/png;base64,eA=="}
        messages = [{"role": "user", "content": [picture]}]
        assert_overloaded(httpx.post(server.url + PATH, json={"model": "scripted", "messages": messages}))
        with pool._lock:
            pool._pending -= 1
        assert httpx.post(server.url + PATH, json={"model": "scripted", "messages": messages}).status_code == 400
        assert pool._pending == 0


@pytest.mark.parametrize("work", ["returns", "raises", "is cancelled"])
def test_the_pool_counts_right(work: str) -> None:
    async def main() -> None:
        pool = DecodingPool(ServingLimits(media_workers=1))
        release = threading.Event()
        if work == "returns":
            assert await pool.run(int, "7") == 7
        elif work == "raises":
            with pytest.raises(ValueError, match="invalid literal"):
                await pool.run(int, "x")
        else:
            running = asyncio.create_task(pool.run(release.wait))
            waiting = asyncio.create_task(pool.run(release.wait))
            await asyncio.sleep(0)
            assert pool._pending == 2
            waiting.cancel()
            release.set()
            assert await running
        await asyncio.sleep(0.02)
        assert pool._pending == 0
        pool.close()

    asyncio.run(main())

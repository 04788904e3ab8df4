"""Connections: none is kept that sends nothing, and no more are open than are allowed."""

import asyncio
import logging
import socket
from typing import Any

import httpx
import pytest

from epdjax.serving.http.clients import client_of
from epdjax.serving.http.connections import AcceptErrors
from epdjax.serving.limits import ServingLimits
from tests.serving.deployments import eventually
from tests.serving.http.scripted import ScriptedEngine
from tests.serving.http.servers import RunningServer, running
from tests.serving.http.test_bounds import PATH, ask, connect


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
        return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_that_sends_no_whole_head_is_closed(sent: bytes) -> None:
    with running(ScriptedEngine(ServingLimits(header_timeout_s=0.2))) as server, connect(server) as silent:
        silent.sendall(sent)
        assert is_closed(silent)
        eventually(lambda: len(server.connections) == 0)
        assert httpx.get(server.url + "/live").status_code == 200


def test_dripping_does_not_keep_a_connection_open() -> None:
    with running(ScriptedEngine(ServingLimits(header_timeout_s=0.3))) as server, connect(server) as slow:
        slow.sendall(b"GET /live HTTP/1.1\r\n")
        slow.settimeout(0.05)
        for index in range(200):
            try:
                slow.sendall(f"X-{index}: y\r\n".encode())
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("the connection was kept for ten seconds")


def test_an_idle_connection_is_closed_after_its_request() -> None:
    with running(ScriptedEngine(ServingLimits(keep_alive_s=0.2))) as server, connect(server) as client:
        client.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        assert is_closed(client)


def test_a_request_that_takes_long_is_not_idle() -> None:
    limits = ServingLimits(header_timeout_s=0.2, keep_alive_s=0.2)
    with running(ScriptedEngine(limits)) as server:
        answer = httpx.post(server.url + PATH, json=ask("slow count 40"))  # 0.8 s
        assert answer.json()["usage"]["completion_tokens"] == 40


def test_where_all_places_are_taken_the_longest_idle_one_makes_room() -> None:
    with running(ScriptedEngine(ServingLimits(max_connections=2))) as server, connect(server) as first:
        eventually(lambda: len(server.connections) == 1)
        with connect(server) as second:
            eventually(lambda: len(server.connections) == 2)
            assert httpx.get(server.url + "/live").status_code == 200
            assert is_closed(first)
            second.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert second.recv(65536).startswith(b"HTTP/1.1 200")


def test_where_everybody_is_at_work_the_newcomer_is_closed() -> None:
    engine = ScriptedEngine(ServingLimits(max_connections=1))
    with running(engine) as server, httpx.stream("POST", server.url + PATH, json=ask("stuck", stream=True)) as busy:
        assert busy.status_code == 200
        with connect(server) as late:
            assert is_closed(late)
        assert len(server.connections) == 1


def test_errors_of_accepting_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    handler = AcceptErrors()
    with caplog.at_level(logging.ERROR):
        loop = asyncio.new_event_loop()
        for _ in range(1000):
            context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "too many files")}
            handler(loop, context)
        assert len(caplog.records) == 1 and "too many files" in caplog.text
        handler(loop, {"message": "something else", "exception": ValueError("x")})
        assert len(caplog.records) == 2
        loop.close()


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_its_address(address: str, client: str) -> None:
    assert client_of({"client": (address, 5)}) == client
    assert client_of({"client": None}) == ""


@pytest.mark.parametrize(
    ("trusted", "expected"), [("", "127.0.0.1"), ("127.0.0.1", "203.0.113.7"), ("10.0.0.0/8", "127.0.0.1")]
)
def test_forwarded_addresses_count_from_trusted_proxies_only(trusted: str, expected: str) -> None:
    engine = ScriptedEngine()
    with running(engine, trusted_proxies=trusted) as server:
        headers = {"x-forwarded-for": "203.0.113.7"}
        assert httpx.post(server.url + PATH, json=ask("count 1"), headers=headers).status_code == 200
    assert engine.clients == [expected]


@pytest.fixture(scope="module")
def shared() -> Any:
    with running(ScriptedEngine()) as server:
        yield server


@pytest.mark.parametrize("path", ["/", "/live", "/health", "/version", "/v1/models", "/openapi.json"])
def test_head_is_get_without_a_body(shared: RunningServer, path: str) -> None:
    got, head = httpx.get(shared.url + path), httpx.head(shared.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize(("path", "allowed"), [("/v1/chat/completions", "POST"), ("/v1/models", "GET")])
def test_options_say_what_is_allowed(shared: RunningServer, path: str, allowed: str) -> None:
    answer = httpx.request("OPTIONS", shared.url + path)
    assert answer.status_code == 204 and allowed in answer.headers["allow"]


def test_live_while_draining() -> None:
    with running(ScriptedEngine()) as server:
        server.service.gate.close()
        assert httpx.get(server.url + "/live").status_code == 200
        assert httpx.get(server.url + "/health").status_code == 503

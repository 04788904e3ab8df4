"""What bad clients do, each in a process of its own: ``python -m epdjax.planning.benchmarks.abuse.cases CASE PORT``.

It makes its requests, says that it is ready, begins at a line on its standard input, and says at the end how many
answers of each status it got. Every loop ends by itself, and goes to this machine's own addresses alone.
"""

import collections
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from epdjax.planning.benchmarks.abuse.asking import READY, chat_body, chat_head, picture_part, png
from epdjax.planning.benchmarks.abuse.decoder import SLOW_BYTES

OTHER_ADDRESS = "127.0.0.2"  # of the bad client: to the server it is not the one that is good
PATIENCE_S = 60.0
Attack = Callable[[], "collections.Counter[str]"]


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(OTHER_ADDRESS, 0))


def _post(port: int, body: bytes, path: str = "/v1/chat/completions") -> str:
    """Sends a request; the status it gets, or how it ended without one."""
    try:
        with _connect(port) as connection:
            # The server may answer, and close, before it has read a body that it does not want.
            with contextlib.suppress(ConnectionError):
                connection.sendall(chat_head(len(body), path) + body)
            answer = connection.recv(65536)
            while answer and connection.recv(65536):
                pass
        return answer.split(b" ", 2)[1].decode() if answer else "closed"
    except (OSError, IndexError) as error:
        return type(error).__name__


def _together(port: int, bodies: list[bytes]) -> "collections.Counter[str]":
    statuses: collections.Counter[str] = collections.Counter()
    threads = [threading.Thread(target=lambda body=body: statuses.update([_post(port, body)])) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def _posting(port: int, *bodies: bytes) -> Attack:
    return lambda: _together(port, list(bodies))


def long_text(port: int) -> Attack:
    """Two texts of 10 and 60 million characters."""
    return _posting(port, *(chat_body("the quick brown fox " * (millions * 50_000)) for millions in (10, 60)))


def brackets(port: int) -> Attack:
    """60 MB of JSON that is nothing but empty lists."""
    return _posting(port, b'{"model": [' + b"[]," * 20_000_000 + b"[]]}")


def many_messages(port: int) -> Attack:
    """A million empty messages."""
    message = b'{"role":"user","content":""},'
    return _posting(port, b'{"model":"x","messages":[' + message * 1_000_000 + message[:-1] + b"]}")


def slow_pictures(port: int) -> Attack:
    """Four requests of four pictures, each of which would keep its decoder busy for ever."""
    parts = [picture_part(SLOW_BYTES + bytes([i]) * 500_000) for i in range(4)]
    return _posting(port, *[chat_body(parts)] * 4)


def large_pictures(port: int) -> Attack:
    """Forty requests of four pictures of 3000 x 3000."""
    parts = [picture_part(png(3000, 3000, i)) for i in range(4)]
    return _posting(port, *[chat_body(parts)] * 40)


def broken_pictures(port: int) -> Attack:
    """Two hundred pictures that end in the middle."""
    return _posting(port, *(chat_body([picture_part(png(200, 200, i)[:100])]) for i in range(200)))


def silent_connections(port: int) -> Attack:
    """Three hundred connections that send nothing, or a header now and then."""

    def attack() -> "collections.Counter[str]":
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(_connect(port)) for _ in range(300)]
            ends = time.monotonic() + 20
            closed = 0
            for connection in connections[::2]:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
            while time.monotonic() < ends:
                for connection in connections[::2]:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"X-More: y\r\n")
                time.sleep(1)
            for connection in connections:
                connection.settimeout(1)
                try:
                    closed += connection.recv(1) == b""
                except TimeoutError:
                    pass
                except OSError:
                    closed += 1
        return collections.Counter({"closed": closed, "open": len(connections) - closed})

    return attack


def admin_bodies(port: int) -> Attack:
    """Ten bodies of 60 MB for /admin, without its key."""
    body = b" " * 60_000_000

    def attack() -> "collections.Counter[str]":
        return collections.Counter(_post(port, body, "/admin/roles") for _ in range(10))

    return attack


def many_answers(port: int) -> Attack:
    """One client that wants sixteen long answers, forty times at once."""
    return _posting(port, *(chat_body(f"tell me about {i}", n=16, max_tokens=64, ignore_eos=True) for i in range(40)))


def clients_that_leave(port: int) -> Attack:
    """A hundred clients that leave once they have asked."""
    body = chat_body([picture_part(png(500, 500, 1))], stream=True, max_tokens=200, ignore_eos=True)
    head = chat_head(len(body))

    def attack() -> "collections.Counter[str]":
        for _ in range(100):
            with contextlib.suppress(OSError), _connect(port) as connection:
                connection.sendall(head + body)
                time.sleep(0.05)
        return collections.Counter({"left": 100})

    return attack


def clients_that_do_not_read(port: int) -> Attack:
    """Fifty clients that ask for a stream and read none of it, for twenty seconds."""
    body = chat_body("hello", stream=True, max_tokens=500, ignore_eos=True, logprobs=True, top_logprobs=20)
    head = chat_head(len(body))

    def attack() -> "collections.Counter[str]":
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                connection = stack.enter_context(_connect(port))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.sendall(head + body)
            time.sleep(20)
        return collections.Counter({"not read": 50})

    return attack


CASES: dict[str, Callable[[int], Attack]] = {
    case.__name__.replace("_", "-"): case
    for case in (
        long_text,
        brackets,
        many_messages,
        slow_pictures,
        large_pictures,
        broken_pictures,
        silent_connections,
        admin_bodies,
        many_answers,
        clients_that_leave,
        clients_that_do_not_read,
    )
}


def main() -> None:
    """One case, as often as lines come in."""
    os.nice(19)  # it stands for another machine: what it computes is not the server's trouble
    attack = CASES[sys.argv[1]](int(sys.argv[2]))
    print(READY, flush=True)
    for _ in _lines():
        print(json.dumps(attack()), flush=True)


def _lines() -> Iterator[str]:
    yield from iter(sys.stdin.readline, "")


if __name__ == "__main__":
    main()

"""Downloads that a client asks for: nothing behind the server's back can be reached with them."""

import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import pytest

from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.addresses import LOOKUPS, is_public, resolved_by
from epdjax.serving.media.images import load_image
from epdjax.serving.media.remote import fetch
from tests.serving.http.pictures import encoded, picture

PUBLIC = "93.184.216.34"
LIMITS = ServingLimits(allow_remote_media=True, max_image_bytes=10_000)


class Network(httpcore.NetworkBackend):
    """The outside world: answers each connection with the next canned response, and notes where it went."""

    def __init__(self, *responses: bytes):
        self.responses = list(responses)
        self.connected: list[tuple[str, int]] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self.connected.append((host, port))
        return httpcore.MockStream([self.responses.pop(0)])


class Names:
    """A resolver that gives a name's answers one after the other, the last for ever."""

    def __init__(self, **answers: list[list[str]]):
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}

    def __call__(self, host: str, port: int) -> list[str]:
        given = self.answers.get(host, [[host]])
        return given.pop(0) if len(given) > 1 else given[0]


def ok(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def refused(url: str, network: Network | None = None, limits: ServingLimits = LIMITS, **names: list[list[str]]) -> str:
    names = {"good_test": [[PUBLIC]], **names}
    with pytest.raises(MediaError) as caught:
        fetch(url, limits, resolve=Names(**names), network=network or Network())
    for secret in ("127.", "10.0", "169.254", PUBLIC):
        assert secret not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_public_file_is_fetched_from_the_checked_address(scheme: str) -> None:
    network = Network(ok(b"data"))
    assert (
        fetch(f"{scheme}://good.test/a.png?x=1#frag", LIMITS, resolve=Names(good_test=[[PUBLIC]]), network=network)
        == b"data"
    )
    assert network.connected == [(PUBLIC, 443 if scheme == "https" else 80)]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2001:0:7f00:1::80ff:fffe",
        "not-an-address",
        "fe80::1%eth0",
        "fec0::1",  # site-local
        "64:ff9b:1::a00:1",  # NAT64 of a local network
        "5f00::1",  # SRv6
        "3fff::1",  # documentation
        "2001:db8::1",
        "2001:10::1",
        "100::1",  # discarded
        "::5db8:d822",  # IPv4-compatible
        "ff02::1",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
    ],
)
def test_private_addresses_are_refused_after_resolution(address: str) -> None:
    assert not is_public(address)
    network = Network()
    assert "no public address" in refused("https://evil.test/", network, evil_test=[[address]])
    assert "no public address" in refused("https://evil.test/", network, evil_test=[[PUBLIC, address]])
    assert network.connected == []


def test_public_addresses_are_public() -> None:
    for address in (PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"):
        assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:169.254.169.254]", "169.254.169.254"])
def test_addresses_in_the_url_are_checked_too(host: str) -> None:
    assert "no public address" in refused(f"http://{host}/latest/meta-data")


def test_numbers_that_only_the_resolver_understands() -> None:
    # The system's resolver reads 2130706433 and 0x7f.1 as 127.0.0.1; what counts is its answer.
    for host in ("2130706433", "0x7f.1", "localhost", "127.1"):
        with pytest.raises(MediaError, match="no public address"):
            fetch(f"http://{host}/", LIMITS, network=Network())


def test_a_second_dns_answer_is_not_asked_for() -> None:
    network = Network(ok(b"data"))
    names = Names(evil_test=[[PUBLIC], ["127.0.0.1"]])
    assert fetch("http://evil.test/", LIMITS, resolve=names, network=network) == b"data"
    assert network.connected == [(PUBLIC, 80)]


def test_redirects_are_checked_hop_by_hop() -> None:
    network = Network(redirect("http://inner.test/"))
    assert "no public address" in refused("https://good.test/", network, inner_test=[["10.0.0.7"]])
    assert len(network.connected) == 1
    assert "http and https only" in refused("https://good.test/", Network(redirect("file:///etc/passwd")))
    only_good = ServingLimits(allow_remote_media=True, allowed_media_hosts=("good.test",))
    assert "this host" in refused("https://good.test/", Network(redirect("https://other.test/")), only_good)
    endless = Network(*[redirect("/again")] * 10)
    assert "more than 3 times" in refused("https://good.test/", endless)
    assert len(endless.connected) == 4
    fine = Network(redirect("/b"), ok(b"data"))
    assert fetch("https://good.test/a", LIMITS, resolve=Names(good_test=[[PUBLIC]]), network=fine) == b"data"


@pytest.mark.parametrize(
    "url",
    [
        "http://good.test\\@127.0.0.1/",
        "http://user:pw@good.test/",
        "http://good.test@127.0.0.1/",
        "http:///x",
        "http://",
        "http://good.test:99999/",
        "http://good.test:x/",
        "http://[::1/",
        "http://good.test/a b",
        "http://good.test/\r\nX: y",
        "http://göod.test/",
        "ftp://good.test/",
        "gopher://good.test/",
        "http://good%2etest/",
        "http://[fe80::1%25eth0]/",
    ],
)
def test_urls_that_two_parsers_could_read_differently(url: str) -> None:
    network = Network()
    refused(url, network)
    assert network.connected == []


def test_allowed_hosts() -> None:
    limits = ServingLimits(allow_remote_media=True, allowed_media_hosts=("good.test", "*.cdn.test"))
    names = Names(good_test=[[PUBLIC]], a_cdn_test=[[PUBLIC]])
    for url in ("https://GOOD.test/", "https://a.cdn.test/"):
        assert fetch(url, limits, resolve=names, network=Network(ok(b"x"))) == b"x"
    for url in ("https://cdn.test/", "https://evilgood.test/", "https://good.test.evil.test/", "https://good.test./"):
        assert "this host" in refused(url, None, limits)
    # Being on the list does not make a private address public.
    assert "no public address" in refused("https://good.test/", None, limits, good_test=[["10.0.0.1"]])


@pytest.mark.parametrize("location", ["http://[::1", "http://[x]/", "//[", "https://good.test:99999/", "http://a b/"])
def test_a_malformed_redirect_is_the_requests_fault(location: str) -> None:
    network = Network(redirect(location))
    refused("https://good.test/", network)
    assert len(network.connected) == 1


def test_other_ports_need_to_be_allowed() -> None:
    for url in ("http://good.test:8080/", "https://good.test:22/"):
        assert "ports 80 and 443 only" in refused(url)
    assert "ports 80 and 443" in refused("https://good.test/", Network(redirect("http://good.test:6379/")))
    limits = ServingLimits(allow_remote_media=True, allowed_media_ports=(80, 443, 8080))
    network = Network(ok(b"x"))
    names = Names(good_test=[[PUBLIC]])
    assert fetch("http://good.test:8080/", limits, resolve=names, network=network) == b"x"
    assert network.connected == [(PUBLIC, 8080)]


def test_resolving_a_name_obeys_the_deadline() -> None:
    release = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        release.wait(60)
        return [PUBLIC]

    network = Network(ok(b"x"))
    with pytest.raises(MediaError, match="too long to fetch"):
        fetch("https://good.test/", LIMITS, deadline=time.monotonic() + 0.2, resolve=slow, network=network)
    assert network.connected == []
    # What was left behind is bounded: the next waits for its end, as long as it may.
    for _ in range(LOOKUPS - 1):
        with pytest.raises(TimeoutError):
            resolved_by(time.monotonic() + 0.02, slow, "good.test", 443)
    with pytest.raises(TimeoutError):
        resolved_by(time.monotonic() + 0.02, lambda host, port: [PUBLIC], "good.test", 443)
    release.set()
    assert resolved_by(time.monotonic() + 60, slow, "good.test", 443) == [PUBLIC]


def test_sizes_statuses_and_encodings() -> None:
    assert "larger than 10000" in refused("https://good.test/", Network(ok(b"x" * 10_001)))
    assert "status 404" in refused(
        "https://good.test/", Network(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    )
    assert "compressed" in refused("https://good.test/", Network(ok(b"x", "Content-Encoding: gzip")))
    assert "could not be fetched" in refused("https://good.test/", Network(b"SSH-2.0-OpenSSH_9.9\r\n"))
    assert "could not be fetched" in refused(
        "https://good.test/", Network(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
    )


def test_a_deadline_in_the_past() -> None:
    with pytest.raises(MediaError, match="too long"):
        fetch(
            "https://good.test/", LIMITS, deadline=0.0, resolve=Names(good_test=[[PUBLIC]]), network=Network(ok(b"x"))
        )


def test_load_image_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(ok(encoded(picture())))
    monkeypatch.setattr("epdjax.serving.media.remote.system_resolver", Names(good_test=[[PUBLIC]]))
    monkeypatch.setattr("httpcore.SyncBackend", lambda: network)
    assert load_image("https://good.test/a.png", LIMITS).size == (32, 24)
    assert network.connected == [(PUBLIC, 443)]

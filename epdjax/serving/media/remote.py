"""Downloads of media over http(s), made so that a client cannot use them to reach what only the server can reach.

The check sits where the connection is made: `GuardedBackend` resolves the name, refuses every address that is not
public, and connects to the very address it checked. So neither a second DNS answer (rebinding), nor a redirect, nor a
URL that two parsers read differently gets around it.
"""

import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.addresses import Resolver, is_public, resolved_by, system_resolver

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PORTS = {"http": 80, "https": 443}


def fetch(
    url: str,
    limits: ServingLimits,
    *,
    deadline: float | None = None,
    max_bytes: int | None = None,
    accept: str = "image/*",
    resolve: Resolver | None = None,
    network: httpcore.NetworkBackend | None = None,
) -> bytes:
    """Downloads one file.

    Args:
        url: an http or https URL.
        limits: hosts, sizes and times.
        deadline: `time.monotonic()` at which to give up; None: `limits.media_timeout_s` from now.
        max_bytes: most bytes of the file; None: `limits.max_image_bytes`.
        accept: media types to ask for.
        resolve: addresses of a host name; None: the system's resolver.
        network: what opens connections; None: sockets.

    Raises:
        MediaError: refused, not there, too large or too slow. The text names no address.
    """
    deadline = time.monotonic() + limits.media_timeout_s if deadline is None else deadline
    max_bytes = limits.max_image_bytes if max_bytes is None else max_bytes
    backend = GuardedBackend(resolve or system_resolver, network or httpcore.SyncBackend(), deadline)
    with httpcore.ConnectionPool(network_backend=backend, retries=0) as pool:
        for _ in range(limits.max_redirects + 1):
            target = check_url(url, limits)
            try:
                body, location = _get(pool, target, accept, max_bytes, deadline)
            except httpcore.TimeoutException:
                raise _too_slow() from None
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError):
                raise MediaError("the URL could not be fetched; check it, or send a data: URL") from None
            if location is None:
                return body
            try:
                url = urljoin(url, location)
            except ValueError:
                raise MediaError("the URL redirects to something that is no URL; give its final address") from None
    raise MediaError(f"the URL redirects more than {limits.max_redirects} times; give its final address")


def check_url(url: str, limits: ServingLimits) -> httpcore.URL:
    """Takes a URL apart, once, into the parts that are both checked and connected to.

    Raises:
        MediaError: not plain http(s), or a host that is not allowed.
    """
    if not url.isascii() or any(c in '\\"<>^`{|}' or c <= " " or c == "\x7f" for c in url):
        raise MediaError("the URL has characters that do not belong in one; percent-encode them")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MediaError("the URL is malformed") from None
    if parts.scheme not in ("http", "https"):
        raise MediaError("media are fetched by http and https only")
    if not host or "@" in parts.netloc or "%" in host:
        raise MediaError("the URL needs a plain host name, without user name or password")
    if limits.allowed_media_hosts and not any(_matches(host, allowed) for allowed in limits.allowed_media_hosts):
        raise MediaError("media may not be fetched from this host; use an allowed host, or send a data: URL")
    if (port or PORTS[parts.scheme]) not in limits.allowed_media_ports:
        allowed = " and ".join(map(str, limits.allowed_media_ports))
        raise MediaError(f"media are fetched from ports {allowed} only; use one of them, or send a data: URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore.URL(scheme=parts.scheme.encode(), host=host.encode(), port=port, target=target.encode())


class GuardedBackend(httpcore.NetworkBackend):
    """Opens connections to public addresses only, each read and write within one deadline."""

    def __init__(self, resolve: Resolver, inner: httpcore.NetworkBackend, deadline: float):
        self._resolve = resolve
        self._inner = inner
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolves, checks every address, and connects to the first of exactly those that answers."""
        try:
            found = resolved_by(self._deadline, self._resolve, host.strip("[]"), port)
            addresses = list(dict.fromkeys(found))
        except TimeoutError:
            raise httpcore.ConnectTimeout("the name was not resolved in time") from None
        except (OSError, UnicodeError):
            addresses = []
        # One private address among public ones is an attack or a mistake; neither is a reason to try the others.
        if not addresses or not all(is_public(address) for address in addresses):
            raise MediaError("the picture's host has no public address; use another host, or send a data: URL")
        for address in addresses:
            try:
                stream = self._inner.connect_tcp(address, port, _left(self._deadline), local_address, socket_options)
            except httpcore.ConnectError:
                continue
            return _DeadlineStream(stream, self._deadline)
        raise httpcore.ConnectError("no address answers")


class _DeadlineStream(httpcore.NetworkStream):
    """A connection on which slow dripping does not help: each wait lasts at most until the download's deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float):
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(
            self._inner.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _get(
    pool: httpcore.ConnectionPool, target: httpcore.URL, accept: str, max_bytes: int, deadline: float
) -> tuple[bytes, str | None]:
    """One GET: the body, or where it redirects to."""
    # identity: a compressed body could be small on the wire and huge here.
    headers: dict[bytes | str, bytes | str] = {
        "accept": accept,
        "accept-encoding": "identity",
        "user-agent": "epdjax",
    }
    with pool.stream("GET", target, headers=headers) as response:
        fields = {name.lower(): value for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in fields:
            return b"", fields[b"location"].decode("latin-1")
        if response.status != 200:
            raise MediaError(f"the URL answers with status {response.status}; check it, or send a data: URL")
        if fields.get(b"content-encoding", b"identity") != b"identity":
            raise MediaError("the URL answers with a compressed body; serve the file as it is")
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > max_bytes:
                raise MediaError(f"the file is larger than {max_bytes} bytes; send a smaller one")
            if time.monotonic() > deadline:
                raise _too_slow()
        return bytes(body), None


def _matches(host: str, allowed: str) -> bool:
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("past the deadline")
    return left


def _too_slow() -> MediaError:
    return MediaError("the URL took too long to fetch; try again, or send a data: URL")

"""Addresses of hosts: asked for within a deadline, and told public from private."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

Resolver = Callable[[str, int], list[str]]
"""(host, port) to addresses; raises OSError where there are none."""

LOOKUPS = 16  # at a time: the system's resolver cannot be interrupted

# Every other IPv6 network is for something else: https://www.iana.org/assignments/ipv6-address-space.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Entries of IANA's special-purpose registries that `is_global` takes for public, in some or all versions of Python.
SPECIAL_PURPOSE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # what was the 6to4 relay
        "2001:10::/28",  # what was ORCHID
        "3fff::/20",  # documentation
    )
)

_lookups = threading.BoundedSemaphore(LOOKUPS)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, seen through every way of wrapping IPv4 in IPv6."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    if any(ip in network for network in SPECIAL_PURPOSE):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


def system_resolver(host: str, port: int) -> list[str]:
    """All addresses the system knows for a host."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def resolved_by(deadline: float, resolve: Resolver, host: str, port: int) -> list[str]:
    """Addresses of a host, if they are found by `deadline` (``time.monotonic()``).

    A lookup that takes longer is left behind in a thread of its own; no more than `LOOKUPS` can be under way.

    Raises:
        TimeoutError: they were not found in time.
        OSError, UnicodeError: there are none.
    """
    if not _lookups.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    found: list[str] = []
    errors: list[Exception] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            found.extend(resolve(host, port))
        except Exception as error:
            errors.append(error)
        finally:
            _lookups.release()
            done.set()

    threading.Thread(target=look_up, name="epdjax-lookup", daemon=True).start()
    if not done.wait(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    if errors:
        raise errors[0]
    return found

"""Who a request comes from, as far as shares are concerned."""

import ipaddress
from typing import Any


def client_of(scope: dict[str, Any]) -> str:
    """What tells one client from another: the address it comes from, of IPv6 the network of 64 bits.

    A host has one such network to itself at least, and could use a new address of it for every request. Where a
    trusted proxy forwards the request, uvicorn has put the address that the proxy names in this place.
    """
    address = scope["client"][0] if scope.get("client") else ""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return str(address)[:100]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False).network_address)
    return str(ip)

"""Who is at the other end: the client's address and whether it speaks TLS. Only trusted proxies may speak for somebody else.

Not a geolocator and no parser of ``Forwarded`` or ``X-Real-IP``: these are ignored, whoever sends them.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MAX_HOPS = 32
_LOCAL = "local"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(scope: Mapping[str, Any], trusted_proxies: Sequence[str]) -> str:
    """The client's address as text, or ``local`` for a peer on a Unix socket.

    The direct peer, unless it is one of ``trusted_proxies`` (addresses, networks, or ``local``). Then X-Forwarded-For is read
    from the right, past trusted proxies; what stands left of the first untrusted address was written by strangers.
    """
    client = scope.get("client")
    peer = client[0] if client else _LOCAL
    if not trusted_proxies or not _trusted(peer, tuple(trusted_proxies)):
        return peer
    nearest = peer
    for hop in _forwarded_for(scope):
        address = _parse(hop)
        if address is None:
            break
        nearest = str(address)
        if not _trusted(nearest, tuple(trusted_proxies)):
            break
    return nearest


def is_secure(scope: Mapping[str, Any], trusted_proxies: Sequence[str]) -> bool:
    """Whether the client speaks TLS: with us, or by X-Forwarded-Proto with a trusted proxy."""
    if scope.get("scheme") in ("https", "wss"):
        return True
    client = scope.get("client")
    if not trusted_proxies or not _trusted(client[0] if client else _LOCAL, tuple(trusted_proxies)):
        return False
    values = [value for name, value in scope.get("headers", ()) if name == b"x-forwarded-proto"]
    return bool(values) and values[-1].split(b",")[-1].strip().lower() in (b"https", b"wss")


def address_subject(address: str) -> str:
    """The unit that limits count by: an IPv4 address, or the /64 of an IPv6 address, which is what one customer is given."""
    if ":" not in address:
        return address
    parsed = _parse(address)
    if not isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed or address)
    return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"


def _forwarded_for(scope: Mapping[str, Any]) -> Iterator[str]:
    """Entries from the right, over all lines of the header."""
    lines = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"x-forwarded-for"]
    yield from [entry.strip() for entry in ",".join(lines).rsplit(",", _MAX_HOPS)][::-1][:_MAX_HOPS]


def _parse(text: str) -> Address | None:
    """``1.2.3.4``, ``1.2.3.4:56``, ``::1``, ``[::1]`` or ``[::1]:56``; an IPv4-mapped address is the IPv4 address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _trusted(peer: str, proxies: tuple[str, ...]) -> bool:
    if peer in proxies:
        return True
    address = _parse(peer)
    return address is not None and any(address in network for network in _networks(proxies))


@functools.lru_cache(maxsize=8)
def _networks(proxies: tuple[str, ...]) -> tuple[Network, ...]:
    """The proxies as networks; names that are none (``local``) are compared as text only."""
    networks: list[Network] = []
    for proxy in proxies:
        try:
            networks.append(ipaddress.ip_network(proxy.strip("[]"), strict=False))
        except ValueError:
            continue
    return tuple(networks)

"""Where a server is: one strict reader of base addresses, and the check of what a name leads to (SSRF).

An address is read once, when a client is built, and its name is looked up once a connection: the connection goes to
exactly the address that was checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass

from app.core.errors import ConfigurationError, UpstreamUnreachable

_BASE = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}))(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[a-z0-9._~!$&'()*+,;=:@%-]*)*)",
    re.IGNORECASE,
)
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_INSIDE = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
"""Not private by the book, and the machine's own all the same: Azure and Oracle keep their metadata there."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_EMBEDDED_V4 = (
    ipaddress.IPv6Network("::/96"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
)
"""IPv4-compatible (deprecated), SIIT, and local NAT64: forms that lead to an IPv4 address and have no public use."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Address:
    """A base address: scheme, host (a name, or an IP address without brackets), port, path without a slash at its end."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted, and the certificate checked."""
        return self.scheme == "https"

    @property
    def literal(self) -> IPAddress | None:
        """The host as an IP address, or None where it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def host_header(self) -> str:
        """The value of ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_base_url(url: str) -> Address:
    """Reads ``http(s)://host[:port][/path]``.

    No user name, query, fragment, backslash, blank or other than ASCII character; numbers that are an IPv4 address only to
    some readers (``0x7f.1``, ``2130706433``) are refused too.

    Raises:
        ConfigurationError: it is anything else. The address itself is not repeated: it may hold a password.
    """
    match = _BASE.fullmatch(url)
    if match is None:
        raise ConfigurationError("base_url must be http:// or https://, a host, and perhaps :port and /path; nothing more.")
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    try:
        if host.startswith("["):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif _NUMERIC.fullmatch(host):
            host = str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ConfigurationError("base_url holds an IP address that is none.") from None
    if not 0 < port < 65536 or ".." in host:
        raise ConfigurationError("base_url holds a host or port that cannot be.")
    return Address(scheme, host, port, match["path"].rstrip("/"))


def is_public(address: IPAddress) -> bool:
    """Whether ``address``, and any IPv4 address inside it, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _EMBEDDED_V4):
            return False
        if address.teredo is not None or address.is_site_local:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
    elif any(address in network for network in _INSIDE):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


async def resolve(address: Address, *, allow_private: bool) -> list[str]:
    """The IP addresses of the host, in the system's order, each once.

    Raises:
        UpstreamUnreachable: the name is unknown, or ``allow_private`` is false and one of its addresses is not public.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise UpstreamUnreachable("The model provider's host name cannot be resolved.", retry_after=5) from error
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(ipaddress.ip_address(host)) for host in hosts):
        raise UpstreamUnreachable("The model provider's host name leads to a private address; its settings do not allow that.")
    return hosts

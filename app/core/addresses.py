"""Where an upstream may be: reads the address that an operator wrote, and refuses it at start rather than at the first call.

It takes a small part of what the URL standards allow, so that no two readers can disagree about the rest: no user names, no
queries, no escapes, no numbers in disguise. No I/O: what a name resolves to is checked by whoever connects.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from app.core.errors import ConfigurationError
from app.core.settings import Upstream

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~-]{1,128}){0,8})/?"
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
"""Where clouds keep the credentials of their machines, besides 169.254.0.0/16: AWS, Alibaba, Oracle, Azure."""
_DISGUISES = tuple(
    ipaddress.ip_network(text) for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
)
"""IPv6 blocks that carry an IPv4 address."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address. ``url``: in its normal form, without a slash at the end.

    ``reach``: ``public`` or ``private`` for an address in numbers (and ``localhost``), ``name`` for one that is yet to resolve.
    """

    url: str
    scheme: Literal["http", "https"]
    host: str
    port: int
    reach: Literal["public", "private", "name"]


def upstream_address(name: str, upstream: Upstream) -> Address:
    """The address of the upstream ``name``, checked.

    Raises:
        ConfigurationError: it is not plain, leads where no upstream is, or would carry the key in clear text over the open
            network. The text holds nothing of the address: it might hold a password.
    """
    try:
        address = _parse(upstream.url, private=upstream.private)
        if upstream.api_key is not None and address.scheme == "http" and not _stays_inside(address, upstream):
            raise ValueError("its key would travel in clear text; use https, or `private: true` within your own network")
    except ValueError as error:
        raise ConfigurationError(f"providers.upstreams.{name}.base_url: {error}.") from None
    return address


def server_address(setting: str, url: str) -> Address:
    """The address of a server of the operator's own, as written in ``setting``: it may be private, and gets no credentials.

    Raises ConfigurationError as `upstream_address`.
    """
    try:
        return _parse(url, private=False)
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {str(error).partition(';')[0]}.") from None


def forbidden(number: IpAddress) -> bool:
    """Whether an address that a name led to is one where no server of ours is: link-local, metadata, of no single machine."""
    try:
        _reach(number, private=False)
    except ValueError:
        return True
    return False


def _stays_inside(address: Address, upstream: Upstream) -> bool:
    return address.reach == "private" or (address.reach == "name" and upstream.private)


def _parse(url: str, *, private: bool) -> Address:
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            "write it as https://HOST, https://HOST:PORT or with a plain path; no user, query, escape or other sign"
        )
    scheme, path = match["scheme"], match["path"]
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65535:
        raise ValueError("the port must be from 1 to 65535")
    if any(part in (".", "..") for part in path.split("/")):
        raise ValueError("its path must not hold . or ..")
    host, reach = _host(match["host"].lower(), private=private)
    shown = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return Address(f"{scheme}://{host}{shown}{path}", "https" if scheme == "https" else "http", host, port, reach)


def _host(host: str, *, private: bool) -> tuple[str, Literal["public", "private", "name"]]:
    if host == "localhost":
        return host, "private"
    if host.startswith("["):
        try:
            number: IpAddress = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("its host is no IPv6 address") from None
        return f"[{number}]", _reach(number, private=private)
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # what resolvers take for a number, in any of its many spellings
        try:
            number = ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError("write an IPv4 address as four decimal numbers") from None
        return str(number), _reach(number, private=private)
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("its host is no name")
    return host, "name"


def _reach(number: IpAddress, *, private: bool) -> Literal["public", "private"]:
    if number.is_loopback:
        return "private"
    if isinstance(number, ipaddress.IPv6Address) and any(number in block for block in _DISGUISES):
        raise ValueError("write an IPv4 address as such")
    if number.is_link_local or number in _METADATA:
        if not private:
            raise ValueError("it is link-local, where clouds keep credentials; `private: true` if that is meant")
        return "private"
    if number.is_unspecified or number.is_multicast or number.is_reserved:
        raise ValueError("it is no address of a server")
    return "public" if number.is_global else "private"

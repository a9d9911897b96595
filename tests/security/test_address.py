"""Client addresses: forwarding headers count only from trusted proxies, and are read from the right."""

from __future__ import annotations

from typing import Any

import pytest

from app.security.address import address_subject, client_address, is_secure

PROXIES = ("127.0.0.1", "10.0.0.0/8", "::1")


def scope(peer: str | None, *forwarded: str, scheme: str = "http", **headers: str) -> dict[str, Any]:
    lines = [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded]
    lines += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"client": None if peer is None else (peer, 1), "headers": lines, "scheme": scheme}


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "expected"),
    [
        ("203.0.113.7", (), (), "203.0.113.7"),
        ("203.0.113.7", ("192.0.2.1",), (), "203.0.113.7"),
        ("127.0.0.1", ("192.0.2.1",), (), "127.0.0.1"),
        ("203.0.113.7", ("192.0.2.1",), PROXIES, "203.0.113.7"),
        ("127.0.0.1", (), PROXIES, "127.0.0.1"),
        ("127.0.0.1", ("192.0.2.1",), PROXIES, "192.0.2.1"),
        ("127.0.0.1", ("6.6.6.6, 192.0.2.1",), PROXIES, "192.0.2.1"),
        ("127.0.0.1", ("6.6.6.6, 192.0.2.1, 10.1.2.3",), PROXIES, "192.0.2.1"),
        ("127.0.0.1", ("6.6.6.6", "192.0.2.1, 10.1.2.3"), PROXIES, "192.0.2.1"),
        ("127.0.0.1", ("10.9.9.9, 10.1.2.3",), PROXIES, "10.9.9.9"),
        ("127.0.0.1", ("6.6.6.6, nonsense, 10.1.2.3",), PROXIES, "10.1.2.3"),
        ("127.0.0.1", ("",), PROXIES, "127.0.0.1"),
        ("127.0.0.1", (",,,",), PROXIES, "127.0.0.1"),
        ("127.0.0.1", ("192.0.2.1:5555",), PROXIES, "192.0.2.1"),
        ("127.0.0.1", ("[2001:db8::1]:5555",), PROXIES, "2001:db8::1"),
        ("127.0.0.1", ("2001:db8::1%eth0",), PROXIES, "2001:db8::1"),
        ("127.0.0.1", ("::ffff:192.0.2.1",), PROXIES, "192.0.2.1"),
        ("::ffff:127.0.0.1", ("192.0.2.1",), PROXIES, "192.0.2.1"),
        ("::1", ("192.0.2.1",), PROXIES, "192.0.2.1"),
        ("127.0.0.1", (", ".join(["6.6.6.6"] + ["10.0.0.1"] * 500),), PROXIES, "10.0.0.1"),
        ("127.0.0.1", ("\xff\x00",), PROXIES, "127.0.0.1"),
        (None, ("192.0.2.1",), (), "local"),
        (None, ("192.0.2.1",), ("local",), "192.0.2.1"),
    ],
)
def test_client_address(peer: str | None, forwarded: tuple[str, ...], proxies: tuple[str, ...], expected: str) -> None:
    assert client_address(scope(peer, *forwarded), proxies) == expected


def test_other_forwarding_headers_are_not_read() -> None:
    forged = scope("127.0.0.1", x_real_ip="192.0.2.1", forwarded="for=192.0.2.1", cf_connecting_ip="192.0.2.1")
    assert client_address(forged, PROXIES) == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "scheme", "proto", "proxies", "expected"),
    [
        ("203.0.113.7", "https", "", (), True),
        ("203.0.113.7", "wss", "", (), True),
        ("203.0.113.7", "http", "https", (), False),
        ("203.0.113.7", "http", "https", PROXIES, False),
        ("127.0.0.1", "http", "https", PROXIES, True),
        ("127.0.0.1", "http", "https, http", PROXIES, False),
        ("127.0.0.1", "http", "http, https", PROXIES, True),
        ("127.0.0.1", "http", "", PROXIES, False),
    ],
)
def test_is_secure(peer: str, scheme: str, proto: str, proxies: tuple[str, ...], expected: bool) -> None:
    headers = {"x_forwarded_proto": proto} if proto else {}
    assert is_secure(scope(peer, scheme=scheme, **headers), proxies) is expected


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("local", "local"),
        ("a:b", "a:b"),
    ],
)
def test_subjects(address: str, subject: str) -> None:
    assert address_subject(address) == subject

"""Passwords: the policy, the parameters, equal work, and a bounded waiting room."""

from __future__ import annotations

import asyncio
import threading

import pytest

from app.core.errors import InvalidRequest, Overloaded
from app.security.common_passwords import COMMON_PASSWORDS, COMMON_STEMS
from app.security.passwords import (
    Argon2idHasher,
    Passwords,
    check_new_password,
    check_username,
    fold_username,
    normalise,
)
from tests.security.world import PASSWORD, CheapHasher


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "ñandú ñandú camino",
        "            x  y  z  w",
        "contraseña de mi gato gris",
        "пароль из четырёх слов",
        "四个安静的词语真的很有帮助吧",
        "🦉🌲🌧️🎻🧭🪵🕯️📯🧶🪁🥁🛶",
        "trailing newline kept no",
        "x" * 3 + "-7h!kQ zz_" * 12,
        "Tr0ub4dor&3 plus",
    ],
)
def test_good_passwords(password: str) -> None:
    check_new_password(password, username="ada")


@pytest.mark.parametrize(
    "password",
    [
        "",
        "eleven char",
        "x9 Kw" * 26,
        "aaaaaaaaaaaa",
        "abababababab",
        "123412341234",
        "1234567890123",
        "210987654321",
        "abcdefghijklm",
        "qwertyuiopas",
        "password1234",
        "PassWord!!!!",
        "Password2026!",
        "contraseña123",
        "CONTRASEÑA1234",
        "correct horse battery staple",
        "iloveyouforever",
        "aprendiz1234",
        "Aprendiz-ada1",
        "ada-lovelace",
        "ada-lovelace1",
        "ｐａｓｓｗｏｒｄ１２３４",
        "with a nul \x00 inside",
        "with a newline\ninside",
        "with a lone \ud800 surrogate",
        "ﷺ" * 13,
    ],
)
def test_refused_passwords(password: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_new_password(password, username="ada-lovelace")
    assert caught.value.field == "password"
    assert password not in caught.value.detail or not password


def test_the_list_is_folded_and_long_enough_to_matter() -> None:
    assert len(COMMON_PASSWORDS) + len(COMMON_STEMS) > 500
    assert all(word == normalise(word).casefold() for word in COMMON_PASSWORDS | COMMON_STEMS)
    assert sum(len(word) >= 12 for word in COMMON_PASSWORDS) > 150


@pytest.mark.parametrize(
    ("sent", "stored"),
    [("Ada", "ada"), ("ａｄａ", "ada"), ("a", "a"), ("0.a_b-c", "0.a_b-c"), ("a" * 64, "a" * 64), ("ſam", "sam")],
)
def test_user_names(sent: str, stored: str) -> None:
    assert check_username(sent) == stored == fold_username(stored)


@pytest.mark.parametrize(
    "name",
    ["", ".a", "-a", "_a", "a b", "a/b", "..", "a" * 65, "ñ", "a\n", "a\x00", "раypal", "a@b", "a\u202eb", "\ud800", "ß" * 40],
)
def test_bad_user_names(name: str) -> None:
    assert fold_username(name) is None
    with pytest.raises(InvalidRequest):
        check_username(name)


def test_parameters_are_those_of_asvs() -> None:
    hasher = Argon2idHasher()
    stored = hasher.hash("x")
    assert stored.startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    assert [len(part) for part in stored.split("$")] == [len(part) for part in hasher.decoy().split("$")]
    assert hasher.decoy().startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    assert hasher.verify(stored, "x")
    assert not hasher.verify(stored, "y")
    assert not hasher.verify(hasher.decoy(), "x")
    assert not hasher.verify("not a hash", "x")
    assert hasher.needs_rehash("$argon2id$v=19$m=19456,t=2,p=1$" + stored.split("$", 4)[4])
    assert not hasher.needs_rehash(stored)


async def test_verifying() -> None:
    hasher = CheapHasher()
    passwords = Passwords(hasher)
    stored = await passwords.hash("ñandú " + PASSWORD)
    assert (await passwords.verify("n\u0303andu\u0301 " + PASSWORD, stored)).ok  # typed on another keyboard
    assert not (await passwords.verify("Ñandú " + PASSWORD, stored)).ok  # no case folding
    assert not (await passwords.verify(("ñandú " + PASSWORD)[:-1], stored)).ok
    assert not (await passwords.verify("\ud800", stored)).ok
    long = "x" * 127
    assert not (await passwords.verify(long + "b", await passwords.hash(long + "a"))).ok  # no truncation
    hasher.verified.clear()
    assert not (await passwords.verify(PASSWORD, None)).ok
    assert hasher.verified == [hasher.decoy()]
    passwords.close()


class Gate(CheapHasher):
    """Hashes only once the gate is open; counts how many are at it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.inside = self.most = 0

    def hash(self, password: str) -> str:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.wait(10)
        with self.lock:
            self.inside -= 1
        return super().hash(password)


async def test_the_waiting_room_is_bounded_and_a_place_is_held_until_the_thread_is_done() -> None:
    gate = Gate()
    passwords = Passwords(gate, workers=2, waiting=3)
    tasks = [asyncio.create_task(passwords.hash(PASSWORD)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await passwords.hash(PASSWORD)
    assert caught.value.retry_after is not None and caught.value.retry_after >= 1
    tasks[0].cancel()  # its client left, but its thread is still at work
    tasks[4].cancel()  # this one never began
    await asyncio.wait([tasks[0], tasks[4]])
    tasks.append(asyncio.create_task(passwords.hash(PASSWORD)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await passwords.hash(PASSWORD)
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 4
    assert gate.most == 2
    assert await passwords.hash(PASSWORD)
    passwords.close()

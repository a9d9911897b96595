"""Passwords: the policy for new ones, and Argon2id hashing that can neither exhaust the machine nor tell accounts apart.

Passwords are brought to Unicode NFKC once, here, and are otherwise taken whole: no truncation, no case folding, no rules on
what they are made of. No hashing happens on the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError

from app.core.errors import InvalidRequest, Overloaded
from app.core.text import fold_name
from app.security.common_passwords import COMMON_PASSWORDS, COMMON_STEMS

MIN_PASSWORD = 12
"""Shortest password in code points, after normalisation."""

MAX_PASSWORD = 128
"""Longest password in code points, before and after normalisation."""

MEMORY_KIB = 47_104
"""46 MiB, with one pass and one lane: OWASP ASVS 5.0, appendix C. 77 ms on two cores."""

_USERNAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SERVICE = "aprendiz"
_WAITING = 64
_SECONDS_EACH = 0.1
_FRESH_CHARACTERS = 6

T = TypeVar("T")


class Hasher(Protocol):
    """What `Passwords` needs of a password hash; blocking."""

    def hash(self, password: str) -> str: ...

    def verify(self, stored: str, password: str) -> bool: ...

    def needs_rehash(self, stored: str) -> bool: ...

    def decoy(self) -> str:
        """A hash that costs as much to verify as any other and that no password fits."""
        ...


class Argon2idHasher:
    """Argon2id. ``memory_kib`` is smaller only in tests."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB) -> None:
        self._argon2 = argon2.PasswordHasher(
            time_cost=1, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16, type=argon2.Type.ID
        )
        salt, digest = (base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
        self._decoy = f"$argon2id$v=19$m={memory_kib},t=1,p=1${salt}${digest}"

    def hash(self, password: str) -> str:
        """The encoded hash, with parameters and salt."""
        return self._argon2.hash(_bytes(password))

    def verify(self, stored: str, password: str) -> bool:
        """Whether ``password`` fits."""
        try:
            return self._argon2.verify(stored, _bytes(password))
        except (Argon2Error, InvalidHashError):
            return False

    def needs_rehash(self, stored: str) -> bool:
        """Whether ``stored`` was made with other parameters."""
        return self._argon2.check_needs_rehash(stored)

    def decoy(self) -> str:
        """Random bytes in the form of a hash."""
        return self._decoy


@dataclass(frozen=True, slots=True)
class Verdict:
    """``rehash``: the password is right and its hash should be made anew, with the parameters of today."""

    ok: bool
    rehash: bool = False


class Passwords:
    """Hashes and verifies in threads of its own, at most ``workers`` at a time; at most ``waiting`` more wait.

    Each hash takes 46 MiB, so the number at work bounds memory; the waiting room bounds time.
    """

    def __init__(self, hasher: Hasher | None = None, *, workers: int | None = None, waiting: int = _WAITING) -> None:
        self._hasher = hasher or Argon2idHasher()
        self._workers = workers or (2 if (os.cpu_count() or 1) > 2 else 1)
        self._room = self._workers + waiting
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="password")
        self._inside = 0
        self._lock = threading.Lock()

    async def hash(self, password: str) -> str:
        """The encoded hash of a new password. Raises Overloaded."""
        return await self._run(lambda: self._hasher.hash(normalise(password)))

    async def verify(self, password: str, stored: str | None) -> Verdict:
        """Whether ``password`` fits ``stored``; None (no such account) costs the same and never fits. Raises Overloaded."""
        against = self._hasher.decoy() if stored is None else stored

        def check() -> Verdict:
            ok = self._hasher.verify(against, normalise(password)) and stored is not None
            return Verdict(ok, rehash=ok and self._hasher.needs_rehash(against))

        return await self._run(check)

    def close(self) -> None:
        """Lets the hashes at work end and drops those that wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        with self._lock:
            if self._inside >= self._room:
                raise Overloaded(
                    "Too many people are logging in at once. Try again in a moment.",
                    retry_after=max(1.0, self._room * _SECONDS_EACH / self._workers),
                )
            self._inside += 1
        # A place is given back when the thread is done with the work, not when a caller gives up waiting for it.
        future = self._threads.submit(work)
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def _leave(self, _: Future[T]) -> None:
        with self._lock:
            self._inside -= 1


def normalise(password: str) -> str:
    """The password in NFKC, so that two keyboards that write one character differently agree."""
    return unicodedata.normalize("NFKC", password)


def check_new_password(password: str, *, username: str) -> None:
    """The policy for a password that is being set. Only length and being hard to guess count.

    Raises:
        InvalidRequest: shorter than 12 or longer than 128 code points, not storable as text, among the commonest
            passwords, or little more than the user's or the service's name.
    """
    text = normalise(password)
    if len(text) < MIN_PASSWORD:
        raise _refused(f"The password has {len(text)} characters; use at least {MIN_PASSWORD}, say four or five words.")
    if max(len(text), len(password)) > MAX_PASSWORD:
        raise _refused(f"The password is longer than {MAX_PASSWORD} characters.")
    if any(unicodedata.category(char) in ("Cs", "Cc") for char in text):
        raise _refused("The password holds a control character.")
    if _is_common(text.casefold()):
        raise _refused("This is one of the passwords that are guessed first. Choose another.")
    rest = text.casefold()
    for name in (username, _SERVICE):
        rest = rest.replace(name, "") if len(name) >= 3 else rest
    if len(rest) < min(_FRESH_CHARACTERS, len(text)) or text.casefold() == username:
        raise _refused("The password is little more than a name. Choose another.")


def check_username(username: str) -> str:
    """The name in its stored form (NFKC, case folded). Raises InvalidRequest where it is no user name."""
    name = fold_username(username)
    if name is None:
        raise InvalidRequest(
            "A user name has 1 to 64 characters of a-z, 0-9, dot, underscore and hyphen, and starts with a letter or digit.",
            field="username",
        )
    return name


def fold_username(username: str) -> str | None:
    """As `check_username`; None where it is no user name."""
    name = fold_name(username)
    return name if _USERNAME.fullmatch(name) else None


def _is_common(text: str) -> bool:
    if text in COMMON_PASSWORDS or text.replace(" ", "") in COMMON_PASSWORDS:
        return True
    if any(text == (text[:period] * len(text))[: len(text)] for period in range(1, 5)):
        return True  # aaaa…, abab…, 12341234…
    if any(text in run or text in run[::-1] for run in _RUNS):
        return True
    stem = text.strip("0123456789!?.,*#$@_-+ ")
    return len(text) - len(stem) <= 8 and (stem in COMMON_STEMS or stem == "")


_RUNS = (
    "1234567890" * 13,
    "abcdefghijklmnopqrstuvwxyz" * 5,
    "qwertyuiop[]asdfghjkl;'zxcvbnm,./",
    "qwertyuiopasdfghjklzxcvbnm" * 5,
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
    "qazwsxedcrfvtgbyhnujmikolp",
)


def _refused(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, field="password")


def _bytes(password: str) -> bytes:
    # A lone surrogate has no UTF-8; no stored password holds one, so it simply never fits.
    return password.encode("utf-8", "surrogatepass")

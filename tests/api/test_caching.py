"""The words of ``Cache-Control`` and what they ask of the cache."""

from __future__ import annotations

import pytest

from app.api.caching import cache_policy


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ("auto", None)),
        ([b""], ("auto", None)),
        ([b"no-transform, only-if-cached"], ("auto", None)),
        ([b"no-store"], ("off", None)),
        ([b"max-age=60, NO-STORE "], ("off", None)),
        ([b"no-cache", b"no-store"], ("off", None)),
        ([b"no-cache"], ("refresh", None)),
        ([b"No-Cache, max-age=60"], ("refresh", None)),
        ([b"max-age=60", b"no-cache"], ("refresh", None)),
        ([b"max-age=0"], ("refresh", None)),
        ([b"max-age=60"], ("use", 60.0)),
        ([b' max-age = "60" '], ("use", 60.0)),
        ([b"max-age=60, max-age=30"], ("use", 30.0)),
        ([b"max-age=" + b"9" * 5000], ("use", 2.0**31)),
        ([b"max-age=4294967296"], ("use", 2.0**31)),
        ([b"max-age"], ("refresh", None)),
        ([b"max-age=soon"], ("refresh", None)),
        ([b"max-age=-1"], ("refresh", None)),
        ([b"max-age=1.5"], ("refresh", None)),
        ([b"\xff\xfe,,,=,no-store=x"], ("off", None)),
    ],
)
def test_the_strictest_word_counts(values: list[bytes], expected: tuple[str, float | None]) -> None:
    headers = [(b"host", b"x"), *((b"cache-control", value) for value in values), (b"pragma", b"no-cache")]
    assert cache_policy(headers) == expected

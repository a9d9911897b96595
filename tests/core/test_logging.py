"""One event is one parseable line, whatever the values hold (B24)."""

from __future__ import annotations

import io
import json
import logging
from typing import Literal

import pytest

from app.core.logging import configure, request_id_var
from app.core.settings import Logging

HOSTILE = ["a\r\nlevel=error", "\x1b[2J", "\u2028{}", '"}{"', "${jndi:ldap://x}", "\x00\x85", "\ud800", "x" * 1_000_000, "%s%n"]


@pytest.fixture
def log_stream() -> io.StringIO:
    return io.StringIO()


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_forges_a_line(log_stream: io.StringIO, value: str) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure(Logging(), stream=log_stream)
    token = request_id_var.set("r-1")
    try:
        logging.getLogger("t").info("name %s", value, extra={"data": {"user": value, "level": "forged"}})
    finally:
        request_id_var.reset(token)
        root.handlers[:], root.level = handlers, level
    lines = log_stream.getvalue().splitlines()
    assert len(lines) == 1
    assert log_stream.getvalue().isascii()
    line = json.loads(lines[0])
    assert line["request_id"] == "r-1"
    assert line["level"] == "info"
    assert len(lines[0]) < 60_000


def test_text_for_people_is_one_line_too(log_stream: io.StringIO) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure(Logging(format="text"), stream=log_stream)
    try:
        logging.getLogger("t").warning("a\nb\x1b[2J", extra={"data": {"k": "v\n"}})
    finally:
        root.handlers[:], root.level = handlers, level
    assert len(log_stream.getvalue().splitlines()) == 1
    assert "\x1b" not in log_stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_line_holds_a_secret(log_stream: io.StringIO, form: Literal["json", "text"]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    plain, quoted = "sk-canary-0123456789", 'sk-canary-"\\-9876543210'
    configure(Logging(format=form), stream=log_stream, secrets=[plain, quoted, "x", ""])
    try:
        for secret in (plain, quoted):
            data = {"text": f"Bearer {secret}", "body": json.dumps({"message": secret}), "inner": {"key": [secret]}}
            try:
                raise ValueError(secret)
            except ValueError:
                logging.getLogger("t").exception("words %s", secret, extra={"data": data})
    finally:
        root.handlers[:], root.level = handlers, level
    assert "canary" not in log_stream.getvalue()
    assert log_stream.getvalue().count("********") >= 8
    assert "text" in log_stream.getvalue()  # a secret of one letter is none

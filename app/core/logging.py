"""Structured logs: one event, one line, one JSON object on stderr, with the request's id in every line of that request.

Values are encoded by a JSON encoder, so no value can forge a line: CR, LF, escape sequences and U+2028 leave it escaped.
Use the standard library's ``logging.getLogger(__name__)`` and pass data by ``extra={"data": {...}}``. Prompts, answers,
passwords, tokens and keys are never logged.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import msgspec

from app.core.settings import Logging
from app.core.text import visible

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Id of the request that the running task works for; set by the outermost middleware."""

MASK = "********"
"""Stands for a secret wherever one would be shown."""

_MAX_FIELD = 2000
_encode = msgspec.json.Encoder().encode
_MIN_SECRET = 8
_NOTHING_ELSE = logging.makeLogRecord({}).__dict__
"""All attributes of a record, for formatters that are not ours."""


class JsonFormatter(logging.Formatter):
    """``{"ts", "level", "logger", "message", "request_id", ...data}``; ``ts`` in RFC 3339, UTC, milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clip(record.getMessage()),
        }
        request_id = request_id_var.get()
        if request_id:
            line["request_id"] = request_id
        data = getattr(record, "data", None)
        if isinstance(record, _DataRecord):
            line.update(record.data)
        elif isinstance(data, Mapping):
            for key, value in data.items():
                line.setdefault(key, _clip(value))
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))[-8000:]
        return _to_line(line)


class TextFormatter(logging.Formatter):
    """For a person at a terminal. Control characters are escaped here too."""

    def format(self, record: logging.LogRecord) -> str:
        data = getattr(record, "data", None)
        tail = " ".join(f"{key}={_clip(value)!r}" for key, value in data.items()) if isinstance(data, Mapping) else ""
        request_id = request_id_var.get()
        head = f"{timestamp(record.created)[11:23]} {record.levelname:<7} {record.name}: {visible(_clip(record.getMessage()))}"
        text = " ".join(part for part in (head, tail, f"[{request_id}]" if request_id else "") if part)
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        return text


class Redacting(logging.Formatter):
    """Another formatter's lines with the secrets of this process masked, whoever wrote them into a text: a server of other
    people's models may repeat our key in its error, a library a password in its own.

    Secrets of less than 8 characters stay: masking them would garble the log and hide nothing.
    """

    def __init__(self, formatter: logging.Formatter, secrets: Iterable[str]) -> None:
        super().__init__()
        self._formatter = formatter
        forms = {secret for secret in secrets if len(secret) >= _MIN_SECRET}
        for _ in range(2):  # a text quoted in a text that is quoted
            forms |= {json.dumps(form)[1:-1] for form in forms} | {repr(form)[1:-1] for form in forms}
        self._secrets = sorted(forms, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = self._formatter.format(record)
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, MASK)
        return line


def configure(settings: Logging, *, stream: TextIO | None = None, secrets: Iterable[str] = ()) -> None:
    """Routes all logs of this process to ``stream`` (stderr unless told). Called once by whoever starts the process.

    Args:
        secrets: texts that no line may hold.
    """
    handler = _Lines(stream or sys.stderr)
    handler.setFormatter(Redacting(JsonFormatter() if settings.format == "json" else TextFormatter(), secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic", "sqlalchemy"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
        logger.setLevel(max(root.level, logging.INFO if name.startswith("uvicorn") else logging.WARNING))


def log_data(logger: logging.Logger, level: int, message: str, data: Mapping[str, Any]) -> None:
    """``logger.log(level, message, extra={"data": data})`` for the hot path: without the walk up the stack for a line number
    that no formatter of ours shows. The caller has asked ``isEnabledFor``, and keeps its values short."""
    logger.handle(_DataRecord(logger.name, level, message, data))


class _DataRecord(logging.LogRecord):
    """A record with what formatters read, and nothing that has to be asked of the system."""

    def __init__(self, name: str, level: int, message: str, data: Mapping[str, Any]) -> None:
        self.__dict__ |= _NOTHING_ELSE
        self.name = name
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg = message
        self.created = time.time()
        self.data = data


class _Lines(logging.StreamHandler[TextIO]):
    """Hands lines on together where several are written in one turn of the event loop; warnings and worse at once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
            if record.levelno >= logging.WARNING or not self._flush_soon():
                self.flush()
        except Exception:  # noqa: BLE001  # as the library's own handlers do: a log that fails must not fail the service
            self.handleError(record)

    def _flush_soon(self) -> bool:
        if self._waiting:
            return True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False  # another thread, or no loop
        self._waiting = True
        loop.call_soon(self._flush_now)
        return True

    def _flush_now(self) -> None:
        self._waiting = False
        self.flush()


def _to_line(line: Mapping[str, Any]) -> str:
    try:
        text = _encode(line).decode()
    except (TypeError, UnicodeEncodeError):
        text = ""  # something that JSON has no word for, or a lone surrogate
    # What is not ASCII is escaped, U+2028, C1 controls and lone surrogates too: whatever reads the log sees one line.
    return text if text and text.isascii() and "\x7f" not in text else json.dumps(line, ensure_ascii=True, default=str)


def timestamp(seconds: float | None = None) -> str:
    """Seconds since the epoch (now unless told) as RFC 3339 UTC with milliseconds."""
    seconds = time.time() if seconds is None else seconds
    return f"{_second(int(seconds // 1))}.{int(seconds % 1 * 1000):03d}Z"


@functools.lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _clip(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_FIELD:
        return value[:_MAX_FIELD] + f"… ({len(value)} characters)"
    return value

"""What logs of other programs have in common: values of any type read as text, messages, votes and times.

Nothing here raises for a value, except `records` for a file that is no file of records at all.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from app.core.errors import InvalidRequest
from app.core.records import Rating
from app.training.rowfiles import check_depth

MAX_TURNS: Final = 1000
_MOST_VALUES: Final = 8_000_000
"""Of one file: a value of two bytes takes thirty times as much once it is read."""
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_UP: Final = frozenset({"1", "1.0", "true", "up", "thumbs_up", "thumbs-up", "good", "positive", "yes", "like", "correct"})
_DOWN: Final = frozenset(
    {"0", "0.0", "-1", "-1.0", "false", "down", "thumbs_down", "thumbs-down", "bad", "negative", "no", "dislike"}
)

Message = dict[str, Any]


def records(path: Path) -> Iterator[Any]:
    """The records of a JSON array, of JSON lines, or of a CSV with a header. One at a time, so that no thread waits long.

    Raises InvalidRequest for what is neither, with the place.
    """
    if not path.is_file():
        raise InvalidRequest("There is no such file.", field="file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest("The file is not text in UTF-8.", field="file") from None
    if text.count(",") + text.count("[") + text.count("{") > _MOST_VALUES:
        raise InvalidRequest(f"The file holds more than {_MOST_VALUES} values. Split it.", field="file")
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        yield from _json_values(text)
    elif start and "," in text.partition("\n")[0]:
        yield from _csv_rows(text)
    else:
        raise InvalidRequest("The file is neither JSON, JSON lines nor CSV.", field="file")


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    at = _space(text, 0)
    in_array = text[at] == "["
    at = _space(text, at + 1) if in_array else at
    while at < len(text) and not (in_array and text[at] == "]"):
        try:
            value, at = decoder.raw_decode(text, at)
            check_depth(value)
        except (ValueError, RecursionError, InvalidRequest):
            line = text.count("\n", 0, at) + 1
            raise InvalidRequest(f"Line {line}: not valid JSON, or nested too deeply.", field="file") from None
        # A page of an API: {"data": [...]}
        pages = None if in_array or not isinstance(get(value, "data"), list) else value["data"]
        yield from [value] if pages is None else pages
        at = _space(text, at)
        if in_array and text[at : at + 1] == ",":
            at = _space(text, at + 1)
        elif in_array and text[at : at + 1] != "]":
            raise InvalidRequest(f"Line {text.count(chr(10), 0, at) + 1}: not valid JSON.", field="file")
    if in_array and text[at : at + 1] != "]":
        raise InvalidRequest("The file ends in the middle of a list.", field="file")


_SPACE = re.compile(r"[ \t\r\n]*")


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    try:
        for row in csv.DictReader(io.StringIO(text), strict=True):
            yield {str(name): value for name, value in row.items() if value not in (None, "")}
    except csv.Error:
        raise InvalidRequest("The file is not valid CSV.", field="file") from None


def get(value: Any, *names: str) -> Any:
    """A value inside nested objects, or None."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def either(row: Mapping[str, Any], name: str) -> Any:
    """A field by its name in camel case, or in the snake case of exports."""
    snake = re.sub(r"([A-Z])", lambda match: "_" + match.group().lower(), name)
    return row.get(name, row.get(snake)) if isinstance(row, dict) else None


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def rating_of(value: Any) -> Rating | None:
    word = str(value).strip().lower()
    return "up" if word in _UP else "down" if word in _DOWN else None


def tags_of(values: Iterable[Any]) -> tuple[str, ...]:
    found = [str(value).strip().lower().replace(" ", "_") for value in values if isinstance(value, str)]
    return tuple(dict.fromkeys(tag for tag in found if _TAG.fullmatch(tag)))[:16]


def parsed(value: Any) -> Any:
    """A value that may be JSON in a string."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value, parse_constant=_no_constant)
            check_depth(found)
        except (ValueError, RecursionError, InvalidRequest):
            return value
        return found
    return value


def conversation(value: Any) -> tuple[Message, ...] | None:
    """What was asked, as messages; None where it is nothing like that, or holds more than text."""
    value = parsed(value)
    if isinstance(value, str):
        return ({"role": "user", "content": value},) if value.strip() else None
    system = get(value, "system")
    turns = get(value, "messages") if isinstance(value, dict) else value
    if isinstance(value, dict) and turns is None:
        asked = next(
            (value[name] for name in ("input", "question", "query", "prompt", "text") if isinstance(value.get(name), str)), None
        )
        return None if asked is None else conversation(asked)
    if not isinstance(turns, list) or not 0 < len(turns) <= MAX_TURNS or not isinstance(system, str | None):
        return None
    found = [_turn(turn) for turn in turns]
    if None in found or not any(turn and turn["role"] == "user" for turn in found):
        return None
    messages = tuple(turn for turn in found if turn is not None)
    return ({"role": "system", "content": system}, *messages) if system else messages


def _turn(value: Any) -> Message | None:
    role, content = get(value, "role"), _content(get(value, "content"))
    if role not in ("system", "developer", "user", "assistant") or content is None or get(value, "tool_calls"):
        return None
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(value: Any) -> str | None:
    """A content as text: a string, or blocks of text (``text`` or TensorZero's ``value``)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    parts = [get(part, "text") or get(part, "value") if get(part, "type") == "text" else None for part in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts and len(texts) == len(parts) else None


def answer_of(value: Any) -> str:
    """The text of an answer in the forms that programs log; empty where there is none."""
    value = parsed(value)
    if isinstance(value, list) and value and get(value[-1], "role") is not None:
        value = value[-1]
    choices = get(value, "choices")
    if isinstance(choices, list) and choices:
        value = get(choices[0], "message")
    if isinstance(value, dict):
        if value.get("tool_calls"):
            return ""
        value = next((value[name] for name in ("content", "text", "output", "answer") if value.get(name)), "")
    return without_thinking(_content(value) or "")


def time_of(value: Any) -> datetime | None:
    """Seconds or milliseconds since the epoch, or a timestamp in words; None for what no clock showed."""
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            found = datetime.fromisoformat(value.strip())
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            seconds = float(value)
            found = datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return found if 2000 <= found.year <= 2100 else None


def time_of_uuid7(value: Any) -> datetime | None:
    match = re.fullmatch(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", str(value).lower())
    return None if match is None else time_of(int(match.group(1) + match.group(2), 16))


_THINKING = re.compile(r'<details type="reasoning".*?(?:</details>|\Z)', re.DOTALL)


def without_thinking(text: str) -> str:
    """``text`` without the reasoning that Open WebUI keeps in front of an answer."""
    return _THINKING.sub("", text).strip()

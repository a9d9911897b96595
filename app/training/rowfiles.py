"""Training rows from a JSONL file in TRL's forms, read strictly: a file is taken whole or refused with the line that is wrong.

| columns | a row of |
|---|---|
| ``messages`` | ``sft``: the last message is the answer |
| ``prompt``, ``completion`` | ``sft`` |
| ``prompt``, ``completion``, ``label`` | ``kto`` |
| ``prompt``, ``chosen``, ``rejected`` | ``dpo``; without ``prompt``, what both begin with is the prompt |

Prompt and answers are either all texts or all lists of messages. ``tools`` is kept, other columns are passed over, as TRL does.
It follows no link to images and reads no other format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from app.core.errors import InvalidRequest, PayloadTooLarge
from app.core.text import check_text

MAX_FILE_BYTES: Final = 200 << 20
MAX_LINE_BYTES: Final = 1 << 20
MAX_ROWS: Final = 200_000
MAX_DEPTH: Final = 32
MAX_MESSAGES: Final = 1000
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time. Blocking.

    Raises:
        InvalidRequest: what is wrong, and in which line; PayloadTooLarge; OSError.
    """
    if not path.is_file():
        raise InvalidRequest("There is no such file.", field="file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PayloadTooLarge(f"A file may have at most {MAX_FILE_BYTES >> 20} MB.", field="file")
    count = 0
    for number, line in lines(path):
        count += 1
        if count > MAX_ROWS:
            raise PayloadTooLarge(f"A file may have at most {MAX_ROWS} rows.", field="file")
        try:
            yield row_of(decode(line))
        except InvalidRequest as error:
            raise InvalidRequest(f"Line {number}: {error.detail}", field="file") from None
    if not count:
        raise InvalidRequest("The file holds no rows.", field="file")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that hold something, with their numbers from 1. Raises InvalidRequest for one that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 2):
            number += 1
            if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
                raise InvalidRequest(f"Line {number}: longer than {MAX_LINE_BYTES >> 20} MB.", field="file")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def decode(line: bytes) -> Any:
    """A line as JSON. Raises InvalidRequest."""
    if line.count(b"[") + line.count(b"{") > 100_000:
        raise InvalidRequest("holds too many lists and objects.")
    try:
        found = msgspec.json.decode(line)
    except RecursionError:
        raise InvalidRequest("is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidRequest("is not valid JSON in UTF-8.") from None
    check_depth(found)
    return found


def check_depth(value: Any) -> None:
    """Raises InvalidRequest where lists and objects are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _inside(outer)]
        if not level:
            return
    raise InvalidRequest("is nested too deeply.")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def row_of(found: Any) -> Row:
    """A row in the form of doc/architecture.md, of one in any of TRL's. Raises InvalidRequest."""
    if not isinstance(found, dict):
        raise InvalidRequest("must be a JSON object.")
    more = {} if found.get("tools") is None else {"tools": _objects(found["tools"], "tools")}
    if "messages" in found:
        messages = _messages(found["messages"], "messages")
        answer = _answer(messages[-1:], "messages")
        return {"kind": "sft", "prompt": _prompt(messages[:-1]), "completion": [answer], **more}
    if "chosen" in found and "rejected" in found:
        return {**_pair(found), **more}
    if "prompt" in found and "completion" in found:
        prompt = _prompt(_said(found["prompt"], "prompt", "user"))
        row = {"prompt": prompt, "completion": [_answer(_said(found["completion"], "completion", "assistant"), "completion")]}
        label = found.get("label")
        if label is None:
            return {"kind": "sft", **row, **more}
        if not isinstance(label, bool):
            raise InvalidRequest("label must be true or false.")
        return {"kind": "kto", **row, "label": label, **more}
    raise InvalidRequest("needs messages, or prompt and completion (with label for ratings), or prompt, chosen and rejected.")


def _pair(found: Mapping[str, Any]) -> Row:
    chosen, rejected = (_said(found[name], name, "assistant") for name in ("chosen", "rejected"))
    if "prompt" in found:
        prompt = _said(found["prompt"], "prompt", "user")
    elif isinstance(found["chosen"], str):
        raise InvalidRequest("needs a prompt beside chosen and rejected.")
    else:
        prompt = chosen[:-1]
        if prompt != rejected[:-1]:
            raise InvalidRequest("chosen and rejected answer different prompts.")
        chosen, rejected = chosen[-1:], rejected[-1:]
    row = {"chosen": [_answer(chosen, "chosen")], "rejected": [_answer(rejected, "rejected")]}
    if row["chosen"] == row["rejected"]:
        raise InvalidRequest("chosen and rejected are the same.")
    return {"kind": "dpo", "prompt": _prompt(prompt), **row}


def _said(value: Any, field: str, role: str) -> list[Row]:
    if isinstance(value, str):
        return [{"role": role, "content": _text(value, field)}]
    return _messages(value, field)


def _messages(value: Any, field: str) -> list[Row]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise InvalidRequest(f"{field} must be a text or a list of 1 to {MAX_MESSAGES} messages.")
    return [_message(each, f"{field}[{number}]") for number, each in enumerate(value)]


def _message(value: Any, field: str) -> Row:
    if not isinstance(value, dict) or value.get("role") not in _ROLES:
        raise InvalidRequest(f"{field} needs a role: system, user, assistant or tool.")
    content, calls = value.get("content"), value.get("tool_calls")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise InvalidRequest(f"{field} holds more than text.")
        content = "".join(part["text"] for part in content)
    calls = None if calls is None else _objects(calls, f"{field}.tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
        raise InvalidRequest(f"{field}.content must be a text.")
    role = "system" if value["role"] == "developer" else value["role"]
    message: Row = {"role": role, "content": _text(content or "", f"{field}.content", blank=True)}
    if calls:
        message["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if value.get(name) is not None:
            if not isinstance(value[name], str):
                raise InvalidRequest(f"{field}.{name} must be a text.")
            message[name] = _text(value[name], f"{field}.{name}")
    return message


def _prompt(messages: list[Row]) -> list[Row]:
    if not any(each["role"] == "user" and each["content"].strip() for each in messages):
        raise InvalidRequest("the prompt holds no question of a user.")
    return messages


def _answer(messages: list[Row], field: str) -> Row:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        verb = "end with" if field == "messages" else "be"
        raise InvalidRequest(f"{field} must {verb} one answer of the assistant.")
    if not messages[0]["content"].strip() and not messages[0].get("tool_calls"):
        raise InvalidRequest(f"{field} is empty.")
    return messages[0]


def _objects(value: Any, field: str) -> list[Any]:
    """A list of objects that any JSON in UTF-8 can hold: no half of a surrogate pair, no infinity."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InvalidRequest(f"{field} must be a list of objects.")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{field} holds what JSON in UTF-8 cannot.") from None
    return value


def _text(value: str, field: str, *, blank: bool = False) -> str:
    return check_text(value, field=field, limit=MAX_LINE_BYTES, allow_blank=blank, prompt=True)

"""The rows of a snapshot as the gate needs them: which held-out rows are asked, and what the training rows wanted. Bounded.

Which rows are taken is decided by hashes and counts before any answer is seen, and the report says how many were left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from app.core.errors import Conflict
from app.core.types import Message
from app.training.gate.guards import Wanted

MOST_GROUPS: Final = 200
MOST_ROWS: Final = 200
_MOST_ROWS_OF_A_GROUP: Final = 4
_MOST_READ: Final = 100_000
_MOST_LINE: Final = 1 << 21
_MOST_WANTED: Final = 400
_MOST_CHARACTERS: Final = 20_000

Kind = Literal["sft", "dpo", "kto"]
_RANK: Final[Mapping[str, int]] = {"sft": 0, "dpo": 1, "kto": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """One held-out row. ``good``: the correction, the chosen or the rated answer; ``bad``: the original or the rejected one."""

    kind: Kind
    group: str
    rater: str
    messages: tuple[Message, ...]
    good: str
    bad: str | None = None
    up: bool = True
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def question(self) -> str:
        """The last thing that a user said."""
        return _last_question(self.messages)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out rows that can be judged by; a group has rows of one kind only. ``left_out``: what had no text to compare."""

    rows: tuple[Row, ...]
    left_out: int

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(row.group for row in self.rows)

    def sample(self, groups: Collection[str]) -> tuple[Row, ...]:
        """At most `MOST_ROWS` rows of these groups: one of each first, then second ones."""
        by_group: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.group in groups:
                by_group[row.group].append(row)
        order = sorted(by_group, key=_draw)
        rounds = ([by_group[name][at] for name in order if at < len(by_group[name])] for at in range(_MOST_ROWS_OF_A_GROUP))
        return tuple(row for each in rounds for row in each)[:MOST_ROWS]


def choose_groups(groups: Iterable[str], used: Collection[str]) -> frozenset[str]:
    """At most `MOST_GROUPS` of them, those that were never judged on first, then always the same ones."""
    return frozenset(sorted(groups, key=lambda name: (name in used, _draw(name)))[:MOST_GROUPS])


def _draw(group: str) -> str:
    return hashlib.sha256(b"gate" + group.encode()).hexdigest()


def read_held_out(path: Path, raters: Mapping[int, str]) -> HeldOut:
    """Reads ``heldout.jsonl``. ``raters``: who judged the row at each position. Blocks: call it in a thread.

    Raises Conflict where a line is no row.
    """
    rows, left_out = [], 0
    for raw in _lines(path):
        row = _row(raw, raters)
        if row is None:
            left_out += 1
        else:
            rows.append(row)
    best: dict[str, int] = {}
    for row in rows:
        best[row.group] = min(_RANK[row.kind], best.get(row.group, 9))
    return HeldOut(tuple(row for row in rows if _RANK[row.kind] == best[row.group]), left_out)


def read_wanted(path: Path) -> tuple[Wanted, ...]:
    """What people wanted, from ``train.jsonl``: corrections, chosen and upvoted answers, evenly taken. Raises as above."""
    found: list[Wanted] = []
    for raw in _lines(path):
        name = "chosen" if raw.get("kind") == "dpo" else "completion"
        text = _text(raw.get(name))
        if text and raw.get("label", True) is True:
            messages = _messages(raw.get("prompt"))
            found.append(Wanted(_last_question(messages), text))
    step = max(1, -(-len(found) // _MOST_WANTED))
    return tuple(found[::step])


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            for _ in range(_MOST_READ):
                line = file.readline(_MOST_LINE)
                if not line:
                    return
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError
                yield found
    except FileNotFoundError:
        raise Conflict("The files of this run's snapshot are gone. Start another run.") from None
    except (ValueError, RecursionError):
        raise Conflict("The files of this run's snapshot are damaged. Start another run.") from None


def _row(raw: Mapping[str, Any], raters: Mapping[int, str]) -> Row | None:
    kind: Any = raw.get("kind")
    group, messages = raw.get("group"), _messages(raw.get("prompt"))
    if kind not in _RANK or not isinstance(group, str) or not messages:
        return None
    good = _text(raw.get("chosen" if kind == "dpo" else "completion"))
    bad = _text(raw.get("rejected" if kind == "dpo" else "original"))
    if not good or (kind == "dpo" and not bad) or (kind == "kto" and not isinstance(raw.get("label"), bool)):
        return None
    tools = raw.get("tools")
    return Row(
        kind,
        group,
        raters.get(raw.get("position", -1), ""),
        messages,
        good,
        bad,
        raw.get("label", True),
        tuple(each for each in tools if isinstance(each, dict)) if isinstance(tools, list) else (),
    )


def _text(answer: object) -> str | None:
    """The text of one assistant message; None where there is none, or where it calls tools: text alone would not tell all."""
    if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], dict) or answer[0].get("tool_calls"):
        return None
    content = answer[0].get("content")
    return content[:_MOST_CHARACTERS] if isinstance(content, str) and content.strip() else None


def _messages(prompt: object) -> tuple[Message, ...]:
    if not isinstance(prompt, list):
        return ()
    return tuple(_message(each) for each in prompt if isinstance(each, dict) and each.get("role") in _ROLES)


_ROLES: Final = ("system", "user", "assistant", "tool", "developer")


def _message(raw: Mapping[str, Any]) -> Message:
    content = raw.get("content")
    calls = tuple(_call(each) for each in raw.get("tool_calls") or () if isinstance(each, dict))
    return Message(
        raw["role"],
        content if isinstance(content, str) else "",
        name=raw.get("name"),
        tool_calls=calls,
        tool_call_id=raw.get("tool_call_id"),
    )


def _call(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call with its arguments as the wire has them: JSON text."""
    function = dict(raw.get("function") or {})
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {**raw, "function": function}


def _last_question(messages: Sequence[Message]) -> str:
    said = [each.content for each in messages if each.role == "user" and isinstance(each.content, str)]
    return said[-1] if said else ""

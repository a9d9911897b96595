"""The file formats of other programs, read into `Item`. Every field is taken to be of any type; nothing here raises for a row.

Sources: Open WebUI ``backend/open_webui/models/feedbacks.py``; Langfuse's "Blob storage export field reference" and public API;
TensorZero's "Data model"; TRL's "Dataset formats".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from app.core.errors import InvalidRequest
from app.core.records import Rating
from app.training.foreign_values import (
    MAX_TURNS,
    Message,
    answer_of,
    conversation,
    either,
    get,
    parsed,
    rating_of,
    tags_of,
    text_of,
    time_of,
    time_of_uuid7,
    without_thinking,
)
from app.training.rowfiles import row_of

MAX_IMPORT_BYTES: Final = 64 << 20
"""Of one import, all files together: answers must be held until the feedback on them has come."""

MOST_PER_ANSWER: Final = 20
"""Each is stored with the whole answer that it is about, so a small file could fill a disk."""
_TOO_MANY: Final = f"more than {MOST_PER_ANSWER} on one answer"

Numbered = Iterable[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Item:
    """One feedback and what it is about. ``worse``: the answer that it was preferred over; ``key``: its id over there."""

    key: str
    messages: tuple[Message, ...]
    answer: str
    model: str = ""
    author: str = ""
    at: datetime | None = None
    rating: Rating | None = None
    correction: str | None = None
    comment: str | None = None
    worse: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was passed over. ``reason``: never a text of the row."""

    reason: str


Read = Iterator[tuple[int, Item | Skipped]]


# --- Open WebUI


def openwebui(rows: Numbered) -> Read:
    """One record a feedback: ``data``, ``meta`` and ``snapshot``, whose chat is a tree of messages."""
    for number, row in rows:
        yield number, _openwebui(row)


def _openwebui(row: Any) -> Item | Skipped:
    data, meta = get(row, "data"), get(row, "meta")
    rating = rating_of(get(data, "rating"))
    if rating is None:
        return Skipped("neither a thumb up nor a thumb down")
    chat = next((found for found in _chats(row) if isinstance(get(found, "history", "messages"), dict)), None)
    if chat is None:
        return Skipped("the chat is not in the file")
    turns = get(chat, "history", "messages")
    answered = turns.get(str(get(meta, "message_id")))
    messages = _branch(turns, answered)
    answer = without_thinking(text_of(get(answered, "content")))
    if messages is None or not answer:
        return Skipped("the rated message is not in the chat")
    system = text_of(get(chat, "params", "system"))
    listed = get(data, "tags")
    worse = _sibling(turns, answered, answer) if rating == "up" and get(data, "sibling_model_ids") else None
    return Item(
        key=text_of(get(row, "id")),
        messages=({"role": "system", "content": system}, *messages) if system else messages,
        answer=answer,
        model=text_of(get(data, "model_id")),
        author=text_of(get(row, "user_id")),
        at=time_of(get(row, "created_at")),
        rating=rating,
        comment=text_of(get(data, "comment")).strip() or None,
        worse=worse,
        tags=tags_of([get(data, "reason"), *(listed if isinstance(listed, list) else ())]),
    )


def _chats(row: Any) -> Iterator[Any]:
    """Where versions of Open WebUI put the chat."""
    yield get(row, "snapshot", "chat", "chat")
    yield get(row, "snapshot", "chat")
    yield get(row, "snapshot")


def _branch(turns: Mapping[str, Any], answered: Any) -> tuple[Message, ...] | None:
    """The messages before the rated one, oldest first; None where the tree is broken or no question is in it."""
    found: list[Message] = []
    at = get(answered, "parentId")
    while at is not None:
        turn = turns.get(str(at))
        role, content = get(turn, "role"), get(turn, "content")
        if role not in ("user", "assistant", "system") or not isinstance(content, str) or get(turn, "files"):
            return None
        if len(found) == MAX_TURNS:  # longer than any chat, or its own ancestor
            return None
        found.append({"role": role, "content": without_thinking(content)})
        at = get(turn, "parentId")
    return tuple(found[::-1]) if any(each["role"] == "user" for each in found) else None


def _sibling(turns: Mapping[str, Any], answered: Any, answer: str) -> str | None:
    """Another answer to the same question, which the rater saw beside this one."""
    for name in sorted(turns):
        other = turns[name]
        text = without_thinking(text_of(get(other, "content")))
        if (
            get(other, "parentId") == get(answered, "parentId")
            and get(other, "role") == "assistant"
            and text not in ("", answer)
        ):
            return text
    return None


# --- Langfuse


def langfuse(rows: Numbered) -> Read:
    """Scores, and the traces or observations that they name; a trace of the API may also carry its scores."""
    scores: list[tuple[int, Any]] = []
    known: dict[str, Any] = {}
    for number, row in rows:
        if not isinstance(row, dict):
            yield number, Skipped("not an object")
        elif either(row, "traceId") is not None and get(row, "name") is not None and _score_value(row) is not None:
            scores.append((number, row))
        elif either(row, "id") is not None and ("input" in row or "output" in row):
            known[str(row["id"])] = row
            nested = row.get("scores")
            scores += [(number, score) for score in nested if isinstance(score, dict)] if isinstance(nested, list) else []
        else:
            yield number, Skipped("neither a score nor a trace")
    counts: Counter[str] = Counter()
    for number, score in scores:
        name = _about(score, known)
        counts[name] += 1
        about = known.get(name)
        yield number, Skipped(_TOO_MANY) if about and counts[name] > MOST_PER_ANSWER else _langfuse(score, about)


def _about(score: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The id of the observation that a score names, where it is in the file, else of its trace."""
    observation = str(either(score, "observationId"))
    return observation if observation in known else str(either(score, "traceId"))


def _langfuse(score: Mapping[str, Any], about: Any) -> Item | Skipped:
    if str(either(score, "source") or "").upper() == "EVAL":
        return Skipped("given by an evaluator, not by a person")
    if about is None:
        return Skipped("its trace is not in the file")
    messages, answer = conversation(get(about, "input")), answer_of(get(about, "output"))
    if messages is None or not answer:
        return Skipped("the trace holds no conversation in text")
    value = _score_value(score)
    corrects = str(either(score, "dataType") or "").upper() == "CORRECTION"
    rating = None if corrects else rating_of(value)
    if not corrects and rating is None:
        return Skipped("neither a thumb up nor a thumb down")
    return Item(
        key=text_of(either(score, "id")) or f"{either(score, 'traceId')}/{get(score, 'name')}",
        messages=messages,
        answer=answer,
        model=text_of(either(about, "providedModelName") or get(about, "model")),
        author=text_of(either(score, "authorUserId") or either(about, "userId")),
        at=time_of(either(score, "timestamp") or either(score, "createdAt")),
        rating=rating,
        correction=text_of(value) if corrects else None,
        comment=text_of(get(score, "comment")).strip() or None,
        tags=tags_of([get(score, "name")]),
    )


def _score_value(score: Mapping[str, Any]) -> Any:
    for name in ("longStringValue", "stringValue", "value"):
        value = either(score, name)
        if value not in (None, ""):
            return value
    return None


# --- TensorZero


def tensorzero(rows: Numbered) -> Read:
    """Rows of ChatInference, BooleanMetricFeedback, CommentFeedback and DemonstrationFeedback, told apart by their columns."""
    answers: dict[str, Any] = {}
    said: dict[tuple[str, str], list[tuple[int, str, Any]]] = {}
    for number, row in rows:
        kind = _tensorzero_kind(row)
        if kind == "inference":
            answers[str(row.get("id"))] = row
        elif kind is None:
            yield number, Skipped("not of a table that can be imported")
        else:
            target = str(row.get("inference_id") or row.get("target_id"))
            author = text_of(get(row, "tags", "user_id") or get(row, "tags", "author"))
            said.setdefault((target, author), []).append((number, kind, row))
    counts: Counter[str] = Counter()
    for (target, author), given in said.items():
        counts[target] += 1
        if target in answers and counts[target] > MOST_PER_ANSWER:
            yield given[-1][0], Skipped(_TOO_MANY)
        else:
            yield given[-1][0], _tensorzero(answers.get(target), target, author, given)


def _tensorzero_kind(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    if "function_name" in row and "input" in row and "output" in row:
        return "inference"
    if "inference_id" in row and "value" in row:
        return "demonstration"
    if "metric_name" in row and _boolean(row.get("value")) is not None:
        return "boolean"
    return "comment" if row.get("target_type") == "inference" else None


def _boolean(value: Any) -> bool | None:
    """ClickHouse writes booleans as such, or as 0 and 1 in its CSV."""
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())


def _tensorzero(inference: Any, target: str, author: str, given: list[tuple[int, str, Any]]) -> Item | Skipped:
    if inference is None:
        return Skipped("its inference is not in the file")
    asked = parsed(inference["input"])
    messages, answer = conversation(asked), answer_of(parsed(inference["output"]))
    if messages is None or not answer:
        return Skipped("the inference holds no conversation in text")
    votes = {_boolean(row["value"]) for _, kind, row in given if kind == "boolean"}
    if len(votes) > 1:
        return Skipped("its metrics disagree")
    shown = [answer_of(parsed(row["value"])) for _, kind, row in given if kind == "demonstration"]
    comments = [text_of(row.get("value")) for _, kind, row in given if kind == "comment"]
    if not votes and not any(shown):
        return Skipped("only a comment, or no demonstration in text")
    return Item(
        key=target,
        messages=messages,
        answer=answer,
        model=f"{text_of(inference.get('function_name'))}/{text_of(inference.get('variant_name'))}",
        author=author,
        at=time_of(given[-1][2].get("timestamp")) or time_of_uuid7(given[-1][2].get("id")),
        rating=None if not votes else "up" if votes == {True} else "down",
        correction=shown[-1] if shown and shown[-1] else None,
        comment=(comments[-1].strip() or None) if comments else None,
        tags=tags_of(sorted({text_of(row.get("metric_name")) for _, kind, row in given if kind == "boolean"})),
    )


# --- TRL


def trl(rows: Numbered) -> Read:
    """TRL's rows. A row has no author, so one file is one person."""
    for number, row in rows:
        try:
            yield number, _trl(row_of(row))
        except InvalidRequest:
            yield number, Skipped("not a row in one of TRL's forms")


def _trl(row: dict[str, Any]) -> Item | Skipped:
    said = [row[name][0] for name in ("completion", "chosen", "rejected") if name in row]
    if any(message.get("tool_calls") for message in said) or "tools" in row:
        return Skipped("answers with tool calls stay with the program that made them")
    texts = [str(message["content"]) for message in said]
    messages = tuple(row["prompt"])
    match row["kind"]:
        case "sft":
            return Item(key="", messages=messages, answer="", correction=texts[0])
        case "dpo":
            return Item(key="", messages=messages, answer=texts[0], worse=texts[1])
    return Item(key="", messages=messages, answer=texts[0], rating="up" if row["label"] else "down")

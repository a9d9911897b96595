"""Training rows from feedback, in the conversational forms that TRL reads. One row at a time; no file, no split, no weighting.

| format | a row | made from |
|---|---|---|
| ``sft`` | ``prompt``, ``completion`` | corrections: the better answer, in its reviewer's wording where there is one |
| ``dpo`` | ``prompt``, ``chosen``, ``rejected`` | corrections over the original; preferences between answers to one prompt |
| ``kto`` | ``prompt``, ``completion``, ``label`` | ratings: up is true, down is false |

An upvoted answer is no SFT row: a vote says "good enough", a correction says "like this". Each row also names its
``prediction_id`` and ``feedback_id``; TRL ignores columns it does not know. What cannot make a sound row makes none: feedback
that a reviewer rejected or has yet to see (`waits`), broken or cut answers as examples, a "correction" that changes nothing
as a pair, a preference across different prompts, messages with images, answers from somebody's facts or documents (`private`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from app.core.errors import InvalidRequest
from app.core.records import FeedbackRecord, PredictionRecord
from app.core.text import storable
from app.memory.private import shows_private
from app.training.rowfiles import decode

Format = Literal["sft", "dpo", "kto"]
Review = Literal["anonymous", "all", "none"]
"""Whose corrections wait for a reviewer: those of feedback tokens, all, or none; see ``training.review``."""
Row = dict[str, Any]
Triple = tuple[FeedbackRecord, PredictionRecord, PredictionRecord | None]
"""A feedback, the prediction it is about, and the prediction that one was preferred over."""

IMPORTED = "import:"
"""How the rater of imported feedback begins."""
_ANONYMOUS = "token:"


def person_of(rater: str | None, asked_by: str | None) -> str | None:
    """Who counts as one person: the rater; for a vote by feedback token the account that asked, which may make any number of
    tokens. So who casts votes for all of an application's users under one account is one person."""
    return asked_by or rater if rater is not None and rater.startswith(_ANONYMOUS) else rater


def waits(said: FeedbackRecord, review: Review) -> bool:
    """Whether the correction may train only once a reviewer has approved it. All of an import does, unless approved."""
    if said.review != "pending":
        return False
    if said.rater.startswith(IMPORTED):
        return True
    if said.correction is None or review == "none":
        return False
    return review == "all" or said.rater.startswith(_ANONYMOUS)


def admitted(said: FeedbackRecord, review: Review) -> FeedbackRecord | None:
    """The feedback as it may train, or None: without a correction that waits, and in the wording of its reviewer."""
    if said.review == "rejected":
        return None
    if waits(said, review):
        return None if said.rater.startswith(IMPORTED) else replace(said, correction=None, edited=None)
    if said.edited is not None and said.review == "approved":
        return replace(said, correction=said.edited)
    return said


def private(prediction: PredictionRecord) -> bool:
    """Whether it was answered with its user's facts or documents in the prompt. It teaches nobody: the answer, and a correction
    of it, hold what only that user may read, and the prompt as stored does not."""
    return shows_private(prediction.input)


def rows(feedback: Iterable[Triple], format: Format, review: Review = "anonymous") -> Iterator[Row]:
    """The rows of ``format`` that the feedback gives, in its order.

    Raises:
        ValueError: an unknown format.
    """
    makers = {"sft": _sft, "dpo": _dpo, "kto": _kto}
    if format not in makers:
        raise ValueError(f"format must be sft, dpo or kto, not {format!r}")
    make = makers[format]
    for said, prediction, other in feedback:
        taken = admitted(said, review)
        prompt = None if taken is None else prompt_of(prediction)
        if taken is None or prompt is None:
            continue
        tools = prediction.input.get("sampling", {}).get("tools")
        for row in make(taken, prediction, other):
            named = {"prompt": prompt, **row, "prediction_id": prediction.id, "feedback_id": said.id}
            yield {**named, "tools": list(tools)} if tools else named


def snapshot_rows(triple: Triple, review: Review) -> Iterator[Row]:
    """The rows that one feedback gives a snapshot: ``kind``, ``prompt``, the answers, and ``tools`` where there were some.

    A correction is one ``sft`` row, with the answer it corrects as ``original``; a run of method ``dpo`` reads it as a pair.
    """
    said, prediction, other = triple
    taken = admitted(said, review)
    prompt = None if taken is None else prompt_of(prediction)
    if taken is None or prompt is None:
        return
    tools = prediction.input.get("sampling", {}).get("tools")
    more: Row = {"tools": list(tools)} if tools else {}
    for row in _sft(taken, prediction, other):
        answer = _answer(prediction)
        if answer is not None and answer["content"].strip() != row["completion"][0]["content"].strip():
            row["original"] = [answer]
        yield {"kind": "sft", "prompt": prompt, **row, **more}
    for row in _preference(prediction, other):
        yield {"kind": "dpo", "prompt": prompt, **row, **more}
    for row in _kto(taken, prediction, other):
        yield {"kind": "kto", "prompt": prompt, **row, **more}


def prompt_of(prediction: PredictionRecord) -> list[Row] | None:
    """The prompt's messages as TRL reads them, or None where they hold more than text, or private text stood beside them."""
    if private(prediction):
        return None
    messages = [_message(each) for each in prediction.input.get("messages", ())]
    if not messages or None in messages:
        return None
    return cast("list[Row]", messages)


def _sft(said: FeedbackRecord, prediction: PredictionRecord, other: PredictionRecord | None) -> Iterator[Row]:
    if said.correction is not None:
        yield {"completion": [_assistant(said.correction)]}


def _dpo(said: FeedbackRecord, prediction: PredictionRecord, other: PredictionRecord | None) -> Iterator[Row]:
    answer = _answer(prediction)
    if answer is None:
        return
    if said.correction is not None and said.correction.strip() != prediction.output.strip():
        yield {"chosen": [_assistant(said.correction)], "rejected": [answer]}
    yield from _preference(prediction, other)


def _preference(prediction: PredictionRecord, other: PredictionRecord | None) -> Iterator[Row]:
    answer = _answer(prediction)
    worse = None if other is None else _answer(other)
    if answer is None or other is None or worse is None or worse == answer:
        return
    if prompt_of(other) == prompt_of(prediction):
        yield {"chosen": [answer], "rejected": [worse]}


def _kto(said: FeedbackRecord, prediction: PredictionRecord, other: PredictionRecord | None) -> Iterator[Row]:
    answer = _answer(prediction)
    if said.rating is not None and answer is not None:
        yield {"completion": [answer], "label": said.rating == "up"}


def _answer(prediction: PredictionRecord) -> Row | None:
    """A whole answer as a message; None for one that was cut, failed or is empty: it shows nothing of what the model does."""
    if prediction.status != "ok" or not (prediction.output.strip() or prediction.tool_calls):
        return None
    if not prediction.tool_calls:
        return _assistant(prediction.output)
    return {**_assistant(prediction.output), "tool_calls": [_call(call) for call in prediction.tool_calls]}


def _assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _message(wire: Mapping[str, Any]) -> Row | None:
    content = wire.get("content")
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            return None
        content = "".join(str(part.get("text", "")) for part in content)
    # Chat templates know "system"; "developer" is the same thing under the name of a later API.
    message: Row = {"role": "system" if wire["role"] == "developer" else wire["role"], "content": content or ""}
    if wire.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in wire["tool_calls"]]
    return message | {key: wire[key] for key in ("name", "tool_call_id") if wire.get(key)}


def _call(call: Mapping[str, Any]) -> Row:
    """A tool call with its arguments as an object: the wire has JSON text, templates want the thing itself."""
    function = dict(call.get("function", {}))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = decode(arguments.encode("utf-8", "surrogatepass"))
        except InvalidRequest:  # NaN, half a surrogate pair, a thousand brackets: what a caller sends here is a caller's choice
            function["arguments"] = {"text": storable(arguments)}
    return {"type": "function", "function": function} | ({"id": call["id"]} if call.get("id") else {})

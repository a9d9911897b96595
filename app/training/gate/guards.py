"""The guards: what a version must not break, over frozen prompts that ship (`guard_prompts.json`). They ask nobody anything.

Both versions answered the same prompts; here the answers become figures. What people asked for themselves may change: each
property is also looked up in the texts that they wanted, see `app.training.gate.verdict`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from statistics import median
from typing import Any, Final, Literal

from app.core.types import Answer
from app.training.gate.evidence import Guard, LevelGuard, LimitGuard, RateGuard, Sides, Unmeasured
from app.training.gate.similarity import tokens
from app.training.gate.traits import TONE, answers_in, is_degenerate, is_json, is_refusal, language

Kind = Literal["fact", "instruction", "chat", "harmless", "harmful", "json", "tool"]

SLOWEST: Final = 2.5
"""How much slower the candidate may write. Adapters cost some speed; a broken one costs all of it."""
FORGETTING: Final = 0.7
"""Nats per token of frozen texts that a version may lose: their perplexity may double. Seen on the bundled model: adapters
whose other answers stayed as they were lost 0.4 to 0.6, those that put what they had learnt into every answer 0.9 and more."""
LENGTHS: Final = 0.5
"""Log of the factor by which answers may be shorter or longer than before, or than what is wanted: 1.65."""
_FACTS: Final = 0.15
_PLAIN_TEXT: Final = ("fact", "instruction", "chat", "harmless", "harmful")
_OVERHEAD_TOKENS: Final = 10
"""What reading the prompt costs, in tokens written: else short answers would look slow."""


@dataclass(frozen=True, slots=True)
class GuardPrompt:
    """One frozen prompt. ``expect``: one of these must be in the answer, or name the tool that is called."""

    kind: Kind
    lang: str
    prompt: str
    expect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardText:
    """A text that must stay as probable as it was."""

    lang: str
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class GuardSet:
    """All that ships."""

    prompts: tuple[GuardPrompt, ...]
    tools: tuple[Mapping[str, Any], ...]
    texts: tuple[GuardText, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """One version's answer. ``seconds``: from asking to the end."""

    answer: Answer
    seconds: float

    @property
    def text(self) -> str:
        return self.answer.text


@dataclass(frozen=True, slots=True)
class Probe:
    """Both versions' answers to a guard prompt."""

    asked: GuardPrompt
    old: Said
    new: Said


@dataclass(frozen=True, slots=True)
class Wanted:
    """A text that people asked for, and the prompt that it answers."""

    prompt: str
    text: str


def guard_set() -> GuardSet:
    """Reads what ships; a moment of work."""
    raw = json.loads(files("app.training.gate").joinpath("guard_prompts.json").read_text(encoding="utf-8"))
    prompts = (GuardPrompt(p["kind"], p["lang"], p["prompt"], tuple(p.get("expect", ()))) for p in raw["prompts"])
    texts = (GuardText(t["lang"], t["prompt"], t["completion"]) for t in raw["texts"])
    return GuardSet(tuple(prompts), tuple(raw["tools"]), tuple(texts))


def of_answers(probes: Sequence[Probe], wanted: Sequence[Wanted]) -> list[Guard]:
    """All guards that can be read off the answers. Some milliseconds of work per hundred texts: call it in a thread."""
    plain = [probe for probe in probes if probe.asked.kind in _PLAIN_TEXT]
    texts = [each.text for each in wanted]
    found: list[Guard] = [
        _facts(_of_kind(probes, "fact")),
        RateGuard(
            "language",
            tuple(answers_in(probe.old.text, probe.asked.lang) for probe in plain),
            tuple(answers_in(probe.new.text, probe.asked.lang) for probe in plain),
            tuple(answers_in(each.text, language(each.prompt)) for each in wanted),
        ),
        _length(plain, texts),
        _rate("degenerate", plain, is_degenerate, texts, "up"),
        _rate("refusals", [each for each in plain if each.asked.kind != "harmful"], is_refusal, texts, "up"),
        # What people want of harmless prompts says nothing of these.
        _rate("harmful_refused", _of_kind(probes, "harmful"), is_refusal, (), "down"),
        _rate("json", _of_kind(probes, "json"), is_json, (), "down"),
        *(_rate(name, plain, test, texts, "both") for name, test in TONE.items()),
        _latency(probes),
    ]
    return found


def of_tools(probes: Sequence[Probe], can: bool) -> Guard:
    """Whether tools are called as well as before."""
    asked = _of_kind(probes, "tool")
    if not can or not asked:
        return Unmeasured("tools", "This model is offered no tools, so there is nothing to lose.", passes=True)
    sides = ([_called(getattr(probe, side).answer, probe.asked) for probe in asked] for side in ("old", "new"))
    old, new = (tuple(side) for side in sides)
    return RateGuard("tools", old, new)


def of_memory(old: Sequence[float], new: Sequence[float]) -> Guard:
    """Forgetting. The figures: nats per token of each frozen text under both versions."""
    return LevelGuard("forgetting", tuple(old), tuple(new), sides="down", margin=FORGETTING, unit="nats per token")


def _of_kind(probes: Iterable[Probe], kind: Kind) -> list[Probe]:
    return [probe for probe in probes if probe.asked.kind == kind]


def _rate(name: str, probes: Sequence[Probe], test: Callable[[str], bool], wanted: Iterable[str], sides: Sides) -> RateGuard:
    old, new = tuple(test(probe.old.text) for probe in probes), tuple(test(probe.new.text) for probe in probes)
    return RateGuard(name, old, new, tuple(map(test, wanted)), sides)


def _facts(probes: Sequence[Probe]) -> RateGuard:
    old, new = (
        tuple(any(map(partial(_holds, getattr(probe, side).text), probe.asked.expect)) for probe in probes)
        for side in ("old", "new")
    )
    return RateGuard("facts", old, new, margin=_FACTS)


def _holds(text: str, expected: str) -> bool:
    return expected in text.casefold()


def _length(probes: Sequence[Probe], wanted: Sequence[str]) -> LevelGuard:
    old, new = (tuple(_size(getattr(probe, side).text) for probe in probes) for side in ("old", "new"))
    return LevelGuard("length", old, new, tuple(map(_size, wanted)), "both", LENGTHS, "log words")


def _size(text: str) -> float:
    return math.log1p(len(tokens(text)))


def _called(answer: Answer, asked: GuardPrompt) -> bool:
    """Whether the right tool was called with arguments that are a JSON object."""
    for call in answer.tool_calls:
        function = call.get("function", {})
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (ValueError, RecursionError):
            continue
        if function.get("name") in asked.expect and isinstance(arguments, dict):
            return True
    return False


def _latency(probes: Sequence[Probe]) -> Guard:
    if not probes:
        return Unmeasured("latency", "No answer came to measure it by.", passes=False)
    old, new = (median(_pace(getattr(probe, side)) for probe in probes) for side in ("old", "new"))
    slower = new / old if old > 0 else 1.0
    words = f"It takes {slower:.2f} times as long for a token as the current version; at most {SLOWEST:.1f} times is allowed."
    return LimitGuard("latency", slower, SLOWEST, detail=words)


def _pace(said: Said) -> float:
    return said.seconds / (said.answer.usage.completion_tokens + _OVERHEAD_TOKENS)

"""The provider without a model: it says back what it was told, word by word. Real in every other respect, and deterministic.

It serves demos, tests and drills: every path of the service works on it without weights. The model's name says what it does,
as options joined by ``+``:

* ``echo``: the last user message as it is;
* ``upper``: in capitals; ``reverse``: its words from last to first;
* ``recites``: every message that it was given, with its role: what a model really reads;
* ``slow``: 20 ms before each word;
* ``tag-NAME``: ``NAME:`` before each word, so that each piece tells which model made it;
* ``thinks``: before it answers, it says what it was asked as visible thinking, unless ``reasoning_effort`` is ``none`` or
  ``thinking`` is disabled;
* ``breaks``: the engine "dies" after three words (`EngineUnavailable`); ``unloadable``: `open` raises `ModelLoadFailed`.

Each name is a version of its own. A token is a word, and as probable as can be. ``response_format`` gives JSON: the smallest
that the schema allows. Tools are called when asked or forced (`app.providers.echo_tools`); after a tool has answered, it says
back what the tool said. An image, a sound, a file is the word ``[image_url]``, ``[input_audio]``, ``[file]``. Embeddings:
`app.providers.echo_vectors`. Asked how probable an answer is, it finds the words likely that it would say there itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from app.core.errors import ContextOverflow, EngineUnavailable, ModelLoadFailed, UnknownModel
from app.core.types import (
    EmbeddingRequest,
    Embeddings,
    EngineState,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ModelSpec,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
    Usage,
)
from app.providers import echo_vectors
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext, Scores
from app.providers.echo_json import smallest_json
from app.providers.echo_tools import calls_of, deltas_of
from app.providers.versions import text_hash, version_info

_SLOTS = 1024
_SLOW_S = 0.02
_BREAKS_AFTER = 3
_CANNED = "Hello. I repeat what you say."
_WORD = re.compile(r"\s*\S+")
_OPTION = re.compile(r"echo|upper|reverse|recites|slow|thinks|breaks|unloadable|tag-[A-Za-z0-9_.]{1,32}")


@dataclass(frozen=True, slots=True)
class _Options:
    upper: bool
    reverse: bool
    recites: bool
    delay_s: float
    tag: str
    thinks: bool
    breaks: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """One answer before it is said: each event is one token."""

    events: list[Event]
    reason: FinishReason
    thoughts: int = 0
    stop: str | None = None


class EchoProvider(BaseLLMProvider):
    """``echo/NAME``; see the module for what names there are."""

    name = "echo"

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        names = spec.model.split("+")
        if len(names) > 8 or not all(_OPTION.fullmatch(name) for name in names):
            raise UnknownModel(
                "The echo provider knows the names echo, upper, reverse, recites, slow, thinks, tag-NAME, breaks and "
                "unloadable, joined by +."
            )
        if spec.adapter is not None:
            raise ModelLoadFailed("The echo provider takes no adapters.")
        on_state(EngineState.STARTING)
        if "unloadable" in names:
            on_state(EngineState.FAILED)
            raise ModelLoadFailed("This echo model cannot be loaded, as its name says.")
        on_state(EngineState.READY)
        return EchoModel(spec, names, self.context, on_state)


class EchoModel(LoadedModel):
    """One echo. In the service's own process: there is nothing to keep away from it."""

    def __init__(
        self, spec: ModelSpec, names: list[str], context: ProviderContext, on_state: Callable[[EngineState], None]
    ) -> None:
        limit = context.model.context_tokens
        self.version = version_info(
            "echo",
            spec.model,
            base_hash=text_hash(f"echo:{spec.model}"),
            template_hash=None,
            context_tokens=limit,
        )
        self.capabilities = Capabilities(
            slots=_SLOTS,
            context_tokens=limit,
            json_schema=True,
            tools=True,
            logprobs=True,
            embeddings=True,
            raw_prompt=True,
            images=True,
            top_k=True,
            scores=True,
        )
        self._options = _Options(
            upper="upper" in names,
            reverse="reverse" in names,
            recites="recites" in names,
            delay_s=_SLOW_S if "slow" in names else 0.0,
            tag="".join(f"{name[4:]}:" for name in names if name.startswith("tag-")),
            thinks="thinks" in names,
            breaks="breaks" in names,
        )
        self._limit = limit
        self._max_tokens = context.model.max_tokens
        self._on_state = on_state
        self._closed = asyncio.Event()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `LoadedModel.stream`."""
        prompt_tokens = await self.count_tokens(request)
        if prompt_tokens >= self._limit:
            raise ContextOverflow(
                f"The prompt has {prompt_tokens} tokens; the model takes {self._limit}, with the answer. Shorten it.",
                field="messages",
            )
        plan = self._plan(request, self._limit - prompt_tokens)
        probable = request.sampling.logprobs
        for number, event in enumerate(plan.events):
            await asyncio.sleep(self._options.delay_s)
            if self._closed.is_set() or (self._options.breaks and number == _BREAKS_AFTER):
                raise EngineUnavailable("The engine stopped while it answered. Try again in a moment.", retry_after=1)
            yield event
            if probable is not None and isinstance(event, TextDelta):
                yield TokenLogprobs((_certain(event.text, probable),))
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(plan.events), reasoning_tokens=plan.thoughts)
        yield Finished(plan.reason, usage, plan.stop)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `LoadedModel.embed`."""
        if self._closed.is_set():
            raise EngineUnavailable("The model engine is stopped.", retry_after=1)
        return echo_vectors.embed(request)

    async def count_tokens(self, request: GenerationRequest) -> int:
        """Words of all messages."""
        if self._closed.is_set():
            raise EngineUnavailable("The model engine is stopped.", retry_after=1)
        return sum(len(_text(message).split()) for message in request.messages)

    async def score(self, request: GenerationRequest, completion: str) -> Scores:
        """See `LoadedModel.score`. A word that it would say at that place: -0.1; another: from -5 to -2, by the word."""
        words, prompt = _WORD.findall(completion), await self.count_tokens(request)
        if prompt + len(words) > self._limit:
            raise ContextOverflow("The prompt and the answer do not fit into the model's context.", field="messages")
        own = _WORD.findall(self._text(request, _said(request)))
        tokens = tuple(
            -0.1 if own[place : place + 1] == [word] else -2.0 - int(text_hash(word)[:4], 16) / 21845
            for place, word in enumerate(words)
        )
        return Scores(sum(tokens), tokens)

    async def prompt(self, request: GenerationRequest) -> str:
        """See `LoadedModel.prompt`: a line for each message."""
        return "".join(f"{message.role}: {_text(message)}\n" for message in request.messages) + "assistant:"

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`; there is no process."""
        return EngineStatus(EngineState.STOPPED if self._closed.is_set() else EngineState.READY, device="cpu")

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        if not self._closed.is_set():
            self._closed.set()
            self._on_state(EngineState.STOPPED)

    def _plan(self, request: GenerationRequest, room: int) -> _Plan:
        sampling = request.sampling
        said = _said(request)
        thoughts = self._thoughts(request, said)
        limit = min(room, self._max_tokens if sampling.max_tokens is None else sampling.max_tokens)
        calls = calls_of(request, said)
        stop = None
        if calls:
            events: list[Event] = [*thoughts, *deltas_of(calls, turn=len(request.messages))]
        else:
            text, stop = _stopped(self._text(request, said), sampling.stop)
            events = [*thoughts, *map(TextDelta, _WORD.findall(text))]
        if len(events) > limit:
            return _Plan(events[:limit], "length", min(limit, len(thoughts)))
        return _Plan(events, "tool_calls" if calls else "stop", len(thoughts), stop)

    def _thoughts(self, request: GenerationRequest, said: str) -> list[ReasoningDelta]:
        sampling = request.sampling
        unwanted = sampling.reasoning_effort == "none" or (sampling.thinking or {}).get("type") == "disabled"
        if unwanted or not self._options.thinks:
            return []
        return [ReasoningDelta(word) for word in _WORD.findall(f"I was asked: {said}")]

    def _text(self, request: GenerationRequest, said: str) -> str:
        text = said if said.strip() else _CANNED
        options = self._options
        if options.recites:
            text = "\n".join(f"{message.role}: {_text(message)}" for message in request.messages)
        if options.upper:
            text = text.upper()
        if options.reverse:
            text = " ".join(reversed(text.split()))
        form = request.sampling.response_format
        if form is not None and form.get("type") in ("json_object", "json_schema"):
            return smallest_json(form, text)
        return _WORD.sub(lambda match: _tagged(match.group(), options.tag), text) if options.tag else text


def _said(request: GenerationRequest) -> str:
    """What there is to say back: what the tools answered last, else the last user message."""
    answered = list(takewhile(lambda message: message.role == "tool", reversed(request.messages)))
    if answered:
        return "\n".join(_text(message) for message in reversed(answered))
    return next((_text(message) for message in reversed(request.messages) if message.role == "user"), "")


def _stopped(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """``text`` up to the first of ``stops``, and which that is."""
    found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
    if not found:
        return text, None
    place, stop = min(found)
    return text[:place], stop


def _certain(token: str, alternatives: int) -> dict[str, object]:
    """The entry of a token in the OpenAI ``logprobs.content`` form."""
    entry = {"token": token, "logprob": 0.0, "bytes": list(token.encode("utf-8", "replace"))}
    return {**entry, "top_logprobs": [entry] if alternatives else []}


def _tagged(word: str, tag: str) -> str:
    bare = word.lstrip()
    return word[: len(word) - len(bare)] + tag + bare


def _text(message: Message) -> str:
    content = message.content
    return " ".join(_words(content)) if isinstance(content, list) else content or ""


def _words(parts: list[dict[str, object]]) -> Iterator[str]:
    for part in parts:
        text = part.get("text")
        yield text if isinstance(text, str) else f"[{part.get('type', 'part')}]"

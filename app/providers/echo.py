"""The provider without a model: it says back what it was told, word by word. Real in every other respect, and deterministic.

It serves demos, tests and drills: every path of the service works on it without weights. The model's name says what it does,
as options joined by ``+``:

* ``echo``: the last user message as it is;
* ``upper``: in capitals; ``reverse``: its words from last to first;
* ``slow``: 20 ms before each word;
* ``tag-NAME``: ``NAME:`` before each word, so that each piece tells which model made it;
* ``breaks``: the engine "dies" after three words (`EngineUnavailable`); ``unloadable``: `open` raises `ModelLoadFailed`.

Each name is a version of its own. A token is a word. ``response_format`` gives JSON: the smallest that the schema allows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from app.core.errors import EngineUnavailable, InvalidRequest, ModelLoadFailed, UnknownModel
from app.core.types import EngineState, Event, Finished, FinishReason, GenerationRequest, Message, ModelSpec, TextDelta, Usage
from app.providers.base import BaseLLMProvider, Capabilities, EngineStatus, LoadedModel, ProviderContext
from app.providers.echo_json import smallest_json
from app.providers.versions import text_hash, version_info

_SLOTS = 1024
_SLOW_S = 0.02
_BREAKS_AFTER = 3
_CANNED = "Hello. I repeat what you say."
_WORD = re.compile(r"\s*\S+")
_OPTION = re.compile(r"echo|upper|reverse|slow|breaks|unloadable|tag-[A-Za-z0-9_.]{1,32}")


@dataclass(frozen=True, slots=True)
class _Options:
    upper: bool
    reverse: bool
    delay_s: float
    tag: str
    breaks: bool


class EchoProvider(BaseLLMProvider):
    """``echo/NAME``; see the module for what names there are."""

    name = "echo"

    async def open(self, spec: ModelSpec, *, on_state: Callable[[EngineState], None]) -> LoadedModel:
        names = spec.model.split("+")
        if len(names) > 8 or not all(_OPTION.fullmatch(name) for name in names):
            raise UnknownModel(
                "The echo provider knows the names echo, upper, reverse, slow, tag-NAME, breaks and unloadable, joined by +."
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
        self.capabilities = Capabilities(slots=_SLOTS, context_tokens=limit, json_schema=True)
        self._options = _Options(
            upper="upper" in names,
            reverse="reverse" in names,
            delay_s=_SLOW_S if "slow" in names else 0.0,
            tag="".join(f"{name[4:]}:" for name in names if name.startswith("tag-")),
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
            raise InvalidRequest(
                f"The prompt has {prompt_tokens} tokens; the model takes {self._limit}, with the answer. Shorten it.",
                field="messages",
            )
        words, reason = self._answer(request, self._limit - prompt_tokens)
        for number, word in enumerate(words):
            await asyncio.sleep(self._options.delay_s)
            if self._closed.is_set() or (self._options.breaks and number == _BREAKS_AFTER):
                raise EngineUnavailable("The engine stopped while it answered. Try again in a moment.", retry_after=1)
            yield TextDelta(word)
        yield Finished(reason, Usage(prompt_tokens=prompt_tokens, completion_tokens=len(words)))

    async def count_tokens(self, request: GenerationRequest) -> int:
        """Words of all messages."""
        if self._closed.is_set():
            raise EngineUnavailable("The model engine is stopped.", retry_after=1)
        return sum(len(_text(message).split()) for message in request.messages)

    def status(self) -> EngineStatus:
        """See `LoadedModel.status`; there is no process."""
        return EngineStatus(EngineState.STOPPED if self._closed.is_set() else EngineState.READY, device="cpu")

    async def aclose(self) -> None:
        """See `LoadedModel.aclose`."""
        if not self._closed.is_set():
            self._closed.set()
            self._on_state(EngineState.STOPPED)

    def _answer(self, request: GenerationRequest, room: int) -> tuple[list[str], FinishReason]:
        sampling = request.sampling
        text = self._text(request)
        ends = [index for index in (text.find(stop) for stop in sampling.stop if stop) if index >= 0]
        if ends:
            text = text[: min(ends)]
        words = _WORD.findall(text)
        limit = min(room, self._max_tokens if sampling.max_tokens is None else sampling.max_tokens)
        return (words[:limit], "length") if len(words) > limit else (words, "stop")

    def _text(self, request: GenerationRequest) -> str:
        said = next((_text(message) for message in reversed(request.messages) if message.role == "user"), "")
        text = said if said.strip() else _CANNED
        options = self._options
        if options.upper:
            text = text.upper()
        if options.reverse:
            text = " ".join(reversed(text.split()))
        form = request.sampling.response_format
        if form is not None and form.get("type") in ("json_object", "json_schema"):
            return smallest_json(form, text)
        return _WORD.sub(lambda match: _tagged(match.group(), options.tag), text) if options.tag else text


def _tagged(word: str, tag: str) -> str:
    bare = word.lstrip()
    return word[: len(word) - len(bare)] + tag + bare


def _text(message: Message) -> str:
    content = message.content
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""

"""What every provider must do, as checks that run. For our own tests and for authors of plug-ins.

    from app.providers.contract import verify
    complaints = await verify(lambda: provider.open(spec, on_state=lambda state: None))

Each check takes a ready `LoadedModel` and raises `ContractBroken`. They need no particular model: what an answer says is not
judged, only how it comes. Times are bounded so that a model that hangs fails instead of hanging the check.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import operator
from collections.abc import Awaitable, Callable, Sequence

from app.core.errors import AprendizError, InvalidRequest
from app.core.types import (
    Answer,
    EmbeddingRequest,
    Embeddings,
    EngineState,
    Event,
    Finished,
    GenerationRequest,
    Message,
    Sampling,
    TextDelta,
    ToolCallDelta,
    fold,
)
from app.providers.base import EngineStatus, LoadedModel
from app.providers.versions import version_info

PATIENCE_S = 120.0
"""Longest time for one answer in a check."""

Check = Callable[[LoadedModel], Awaitable[None]]

_LONG = "Say this again, and again: " + " ".join(f"word{number}" for number in range(60))
_UNICODE = "¿Qué tal, señor? 漢字 🙂👩‍👩‍👧 fin"


class ContractBroken(AssertionError):
    """A provider does not do what the contract says."""


def ask(text: str = "What is the capital of France?", **sampling: object) -> GenerationRequest:
    """A small request; ``sampling`` are fields of `Sampling`, greedy unless told."""
    fields = {"max_tokens": 16, "temperature": 0.0, "seed": 1, **sampling}
    return GenerationRequest((Message("user", text),), sampling=Sampling(**fields))  # type: ignore[arg-type]


async def verify(open_model: Callable[[], Awaitable[LoadedModel]]) -> list[str]:
    """Opens a model, runs all checks, closes it. Returns what is wrong, one line each; nothing wrong: an empty list."""
    complaints: list[str] = []
    model = await open_model()
    try:
        for check in CHECKS if model.capabilities.chat else VECTOR_CHECKS:
            complaints += await _complaint(check, model)
    finally:
        await model.aclose()
    complaints += await _complaint(closes_twice, model)
    return complaints


async def _complaint(check: Check, model: LoadedModel) -> list[str]:
    name = getattr(check, "__name__", str(check))
    try:
        async with asyncio.timeout(10 * PATIENCE_S):
            await check(model)
    except ContractBroken as broken:
        return [f"{name}: {broken}"]
    except TimeoutError:
        return [f"{name}: it takes too long"]
    except Exception as error:  # noqa: BLE001 - whatever a plug-in raises here is its fault, and reported
        return [f"{name}: raises {type(error).__name__}: {error}"]
    return []


async def ends_with_one_finished(model: LoadedModel) -> None:
    """Deltas that are never empty, then exactly one Finished, then nothing."""
    events = await _events(model, ask())
    _must(bool(events) and isinstance(events[-1], Finished), "the last event is not Finished")
    _must(sum(isinstance(event, Finished) for event in events) == 1, "there is more than one Finished")
    _must(all(event.text for event in events if isinstance(event, TextDelta)), "a TextDelta is empty")
    _must(any(isinstance(event, TextDelta | ToolCallDelta) for event in events), "there is no answer at all")


async def usage_is_true(model: LoadedModel) -> None:
    """Tokens are counted, and `count_tokens` gives the same number for the prompt; a remote model may say more, never less."""
    request = ask()
    answer = await _answer(model, request)
    usage, counted = answer.usage, await model.count_tokens(request)
    told = f"usage says {usage.prompt_tokens} prompt tokens, count_tokens {counted}"
    _must(0 < usage.prompt_tokens <= counted if model.capabilities.remote else usage.prompt_tokens == counted, told)
    _must(0 < usage.completion_tokens <= 16, f"{usage.completion_tokens} completion tokens with max_tokens 16")
    _must(0 <= usage.cached_tokens <= usage.prompt_tokens, "more tokens cached than there are in the prompt")


async def max_tokens_holds(model: LoadedModel) -> None:
    """No answer is longer than asked, and a cut one says so."""
    answer = await _answer(model, ask(_LONG, max_tokens=3))
    _must(answer.usage.completion_tokens <= 3, f"{answer.usage.completion_tokens} tokens with max_tokens 3")
    if answer.usage.completion_tokens == 3:
        _must(answer.finish_reason in ("length", "stop"), f"finish reason {answer.finish_reason}")
    whole = await _answer(model, ask(_LONG, max_tokens=8))
    _must(whole.usage.completion_tokens < 8 or whole.finish_reason == "length", "a cut answer does not say `length`")


async def stop_holds(model: LoadedModel) -> None:
    """A stop text ends the answer and is not part of it, also where it spans tokens."""
    whole = (await _answer(model, ask(_LONG, max_tokens=24))).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 5]
    if not stop.strip():
        return
    answer = await _answer(model, ask(_LONG, max_tokens=24, stop=(stop,)))
    _must(stop not in answer.text, f"the stop text {stop!r} is in the answer")


async def streams_do_not_mix(model: LoadedModel) -> None:
    """Two answers at the same time: each has its own words (where a schema can force them) and its own usage."""
    requests = [_forced(model, f"one {'a ' * 5}", "alpha alpha alpha"), _forced(model, f"two {'b ' * 40}", "omega omega omega")]
    counts = [(await _answer(model, request)).usage.prompt_tokens for request in requests]
    answers = await asyncio.gather(*(_answer(model, request) for request in requests))
    _must([answer.usage.prompt_tokens for answer in answers] == counts, "usage of one stream came with another")
    if model.capabilities.json_schema:
        texts = [_json_text(answer.text) for answer in answers]
        _must(texts == ["alpha alpha alpha", "omega omega omega"], f"the answers are mixed: {texts}")


async def unicode_is_whole(model: LoadedModel) -> None:
    """Characters whose bytes are split over tokens arrive whole."""
    events = await _events(model, _forced(model, f"Repeat exactly: {_UNICODE}", _UNICODE))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    text.encode("utf-8")
    if model.capabilities.json_schema:
        _must(_json_text(text) == _UNICODE, f"the text came as {text!r}")


async def closing_cancels(model: LoadedModel) -> None:
    """A closed stream frees its slot at once: after as many left streams as there are slots, another answer comes."""
    for _ in range(min(model.capabilities.slots, 32)):
        stream = model.stream(ask(_LONG, max_tokens=1000))
        async with asyncio.timeout(PATIENCE_S):
            await anext(stream)
            await stream.aclose()
    async with asyncio.timeout(PATIENCE_S):
        await _answer(model, ask(max_tokens=1))


async def cancelling_before_the_start_is_clean(model: LoadedModel) -> None:
    """A task that is cancelled while it waits for the first event ends with CancelledError, and the model lives on."""
    task = asyncio.create_task(_answer(model, ask(_LONG, max_tokens=1000)))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await _answer(model, ask(max_tokens=1))


async def too_long_is_refused(model: LoadedModel) -> None:
    """A prompt beyond the context is InvalidRequest, and comes before any event."""
    limit = model.capabilities.context_tokens
    if limit is None or limit > 65_536:
        return
    stream = model.stream(ask("word " * (limit + 64)))
    try:
        async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(stream):
            event = await anext(stream)
    except InvalidRequest as error:
        _must(len(error.detail) > 20, "the error does not say what to do")
        return
    except AprendizError as error:
        raise ContractBroken(f"a prompt that is too long raises {type(error).__name__}, not InvalidRequest") from error
    raise ContractBroken(f"a prompt that is too long is answered with {event!r}")


async def scores_agree(model: LoadedModel) -> None:
    """A model that tells scores: as many numbers as tokens, none above nought, the same again; nothing costs nothing."""
    if not model.capabilities.scores:
        return
    request = ask()
    empty, first = await model.score(request, ""), await model.score(request, _UNICODE)
    again = await model.score(request, _UNICODE)
    _must(empty.tokens == () and empty.logprob == 0, f"no words at all score {empty!r}")
    _must(bool(first.tokens) and all(-math.inf < each <= 1e-3 for each in first.tokens), f"a text scores {first!r}")
    _must(abs(first.logprob - sum(first.tokens)) < 1e-3, "the sum of a score is not that of its tokens")
    _must(abs(first.logprob - again.logprob) < 0.01 * len(first.tokens), f"the same text scores {first!r}, then {again!r}")
    _must(bool(await model.prompt(request)), "there is no templated prompt")


async def status_is_there(model: LoadedModel) -> None:
    """`status` tells at once, and an open model is ready."""
    status = model.status()
    _must(isinstance(status, EngineStatus) and status.state is EngineState.READY, f"the status of an open model is {status!r}")


async def version_is_true(model: LoadedModel) -> None:
    """The version's id follows from its parts."""
    version = model.version
    expected = version_info(
        version.provider,
        version.model,
        base_hash=version.base_hash,
        template_hash=version.template_hash,
        adapter_hash=version.adapter_hash,
    )
    _must(version.id == expected.id, f"the version's id is {version.id}, its parts give {expected.id}")
    _must(model.capabilities.slots >= 1, "there is not one slot")


async def closes_twice(model: LoadedModel) -> None:
    """`aclose` may be called again; afterwards there are no answers, only our errors."""
    await model.aclose()
    await model.aclose()
    _must(model.status().state is EngineState.STOPPED, "a closed model is not `stopped`")
    try:
        if model.capabilities.chat:
            await _answer(model, ask(max_tokens=1))
        else:
            await model.embed(EmbeddingRequest(("a",)))
    except AprendizError:
        return
    raise ContractBroken("a closed model answers")


async def vectors_are_vectors(model: LoadedModel) -> None:
    """One vector of one length for each text, in order, the same alone and in company; too many dimensions are refused."""
    texts = ("a", "The quick brown fox jumps over the lazy dog. " * 30, _UNICODE, "b\0c", "", "x" * 100_000)
    together = (await _embed(model, *texts)).vectors
    _must(len(together) == len(texts), "there is not one vector for each text")
    _must(len({len(vector) for vector in together}) == 1, "vectors differ in length")
    for text, vector in zip(texts, together, strict=True):
        [alone] = (await _embed(model, text)).vectors
        nearness = sum(map(operator.mul, vector, alone)) / (math.hypot(*vector) * math.hypot(*alone))
        _must(nearness > 0.99, f"{text[:20]!r} alone is another vector than in company: {nearness}")
    try:
        await model.embed(EmbeddingRequest(("a",), dimensions=len(together[0]) + 1))
    except InvalidRequest:
        return
    raise ContractBroken("more dimensions than the model has are not refused")


async def chat_is_refused(model: LoadedModel) -> None:
    """A model that only makes vectors refuses an answer as InvalidRequest."""
    try:
        await _answer(model, ask())
    except InvalidRequest:
        return
    raise ContractBroken("it answers, although its capabilities say that it does not")


CHECKS: Sequence[Check] = (
    ends_with_one_finished,
    usage_is_true,
    max_tokens_holds,
    stop_holds,
    streams_do_not_mix,
    unicode_is_whole,
    closing_cancels,
    cancelling_before_the_start_is_clean,
    too_long_is_refused,
    scores_agree,
    status_is_there,
    version_is_true,
)
"""All checks of an open model, in order. `closes_twice` comes last, on its own: it ends the model."""

VECTOR_CHECKS: Sequence[Check] = (vectors_are_vectors, chat_is_refused, status_is_there, version_is_true)
"""Those of a model that only makes vectors."""


def _must(condition: bool, complaint: str) -> None:
    if not condition:
        raise ContractBroken(complaint)


async def _events(model: LoadedModel, request: GenerationRequest) -> list[Event]:
    async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(model.stream(request)) as stream:
        return [event async for event in stream]


async def _embed(model: LoadedModel, *texts: str) -> Embeddings:
    async with asyncio.timeout(PATIENCE_S):
        return await model.embed(EmbeddingRequest(texts))


async def _answer(model: LoadedModel, request: GenerationRequest) -> Answer:
    async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(model.stream(request)) as stream:
        return await fold(stream)


def _forced(model: LoadedModel, prompt: str, text: str) -> GenerationRequest:
    """A request whose answer can only be ``{"text": text}``, if the model follows schemas."""
    if not model.capabilities.json_schema:
        return ask(prompt, max_tokens=24)
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string", "const": text}},
        "required": ["text"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "said", "schema": schema, "strict": True}}
    return ask(prompt, max_tokens=200, response_format=form)


def _json_text(answer: str) -> object:
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value.get("text") if isinstance(value, dict) else None

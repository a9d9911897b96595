"""Makes a request fit a loaded model: its defaults filled in (a system message too), its limits kept. Refuses what the model
cannot do; changes no message of the caller's."""

from __future__ import annotations

import asyncio
import dataclasses
import json

from app.core.errors import ContextOverflow, EngineUnavailable, InvalidRequest
from app.core.settings import Memory, Model
from app.core.types import GenerationRequest, Message
from app.models.context import Ruler, fit_context
from app.models.shortening import shorten
from app.models.showing import shown
from app.providers.base import Capabilities, LoadedModel
from app.providers.estimate import prompt_tokens

_COUNT_S = 15.0
_TEMPLATE_BYTES = 64
"""Generous room for what a chat template writes around one message."""
_TOOLS_BYTES = 1024
"""And around tools, which it may indent, or which a provider explains (`app/providers/llamacpp_messages.py`)."""
_EXAMPLES_SHARE = 4
"""Examples may take this part of the context, no more."""
_CHARACTERS_PER_TOKEN = 3


_MEMORY = Memory()


async def fit(request: GenerationRequest, loaded: LoadedModel, settings: Model, memory: Memory = _MEMORY) -> GenerationRequest:
    """``request`` with the defaults of ``settings``, its answer capped by what the context leaves beside the prompt, and of
    what was found for it as much as the budgets of ``memory`` and the context let in.

    Other people's models get it as the caller wrote it: our defaults are those of a small model of our own. Hints that a model
    does not know (``reasoning_effort``, ``thinking``) are left to it, which ignores them.

    Raises:
        InvalidRequest: no messages, or an ability that the model lacks.
        ContextOverflow: the prompt fills the context.
        EngineUnavailable: the engine did not count the prompt.
    """
    if not request.messages:
        raise InvalidRequest("messages is empty.", field="messages")
    able = loaded.capabilities
    _check_abilities(request, able)
    sampling = request.sampling
    if able.remote:
        request = await _shortened(request, loaded, sampling.max_tokens or 1)
        request = await _with_context(request, loaded, memory, sampling.max_tokens or settings.max_tokens)
        await _cap(request, loaded, sampling.max_tokens or 1)
        return dataclasses.replace(request, examples=()) if request.examples else request
    request = as_asked(request, loaded, settings)
    wanted = settings.max_tokens if sampling.max_tokens is None else sampling.max_tokens
    request = await _shortened(request, loaded, wanted)
    request = await _with_context(request, loaded, memory, wanted)
    allowed = await _cap(request, loaded, wanted)
    if allowed != sampling.max_tokens or sampling.temperature is None:
        temperature = settings.temperature if sampling.temperature is None else sampling.temperature
        sampling = dataclasses.replace(sampling, max_tokens=allowed, temperature=temperature)
    request = dataclasses.replace(request, sampling=sampling)
    return await _with_room(request, loaded, allowed) if request.examples else request


def as_asked(request: GenerationRequest, loaded: LoadedModel, settings: Model) -> GenerationRequest:
    """``request`` with the system message that the model will really read."""
    if request.raw or loaded.capabilities.remote:
        return request
    return with_system(request, settings.system_prompt)


def with_system(request: GenerationRequest, prompt: str) -> GenerationRequest:
    """``request`` with ``prompt`` in front unless it has a system message of its own.

    Here and not in a provider, so that the prediction is stored with what the model really read, and a version that is
    trained on it learns under the same words.
    """
    if not prompt or any(message.role in ("system", "developer") for message in request.messages):
        return request
    return dataclasses.replace(request, messages=(Message("system", prompt), *request.messages))


async def _shortened(request: GenerationRequest, loaded: LoadedModel, wanted: int) -> GenerationRequest:
    """``request`` without its oldest messages, where its caller would rather lose them than be refused.

    Room for half a context of answer is made at most: a caller who asks for more gets what there is.
    """
    context = loaded.capabilities.context_tokens
    if not request.truncate or context is None or most_tokens(request) + wanted <= context:
        return request

    async def count(shorter: GenerationRequest) -> int:
        return await _count(shorter, loaded)

    return await shorten(request, count, most=context - min(wanted, context // 2))


async def _with_context(request: GenerationRequest, loaded: LoadedModel, memory: Memory, wanted: int) -> GenerationRequest:
    """``request`` with as much of what was found for it as fits. Room for half a context of answer is made at most.

    Other people's models are not asked how long a prompt is, for each question would be a call: it is estimated.
    """
    if request.context is None and not request.recalled:
        return request

    async def count(written: GenerationRequest) -> int:
        return prompt_tokens(written) if loaded.capabilities.remote else await _count(written, loaded)

    context = loaded.capabilities.context_tokens
    room = None if context is None else context - min(wanted, context // 2)
    own = dataclasses.replace(request, examples=())
    fitted = await fit_context(own, Ruler(count, most_tokens), memory, room)
    return dataclasses.replace(fitted, examples=request.examples)


async def _with_room(request: GenerationRequest, loaded: LoadedModel, wanted: int) -> GenerationRequest:
    """``request`` with as many of its examples as fit: into a quarter of the context, and beside the prompt and the answer.

    The least similar go first, the caller's own words never.
    """
    context = loaded.capabilities.context_tokens
    while request.examples and context is not None:
        characters = sum(len(each.prompt) + len(each.answer) for each in request.examples)
        written = shown(request)
        if characters <= context // _EXAMPLES_SHARE * _CHARACTERS_PER_TOKEN and (
            most_tokens(written) + wanted <= context or await _count(written, loaded) + wanted <= context
        ):
            break
        request = dataclasses.replace(request, examples=request.examples[1:])
    return request


async def _count(request: GenerationRequest, loaded: LoadedModel) -> int:
    try:
        async with asyncio.timeout(_COUNT_S):
            return await loaded.count_tokens(request)
    except TimeoutError:
        raise EngineUnavailable("The model engine does not answer. Try again.", retry_after=2) from None


async def _cap(request: GenerationRequest, loaded: LoadedModel, wanted: int) -> int:
    context = loaded.capabilities.context_tokens
    if context is None:
        return wanted
    if request.context is not None:
        request = shown(dataclasses.replace(request, examples=()))
    # Byte-level vocabularies make at most one token of a byte, so a short prompt needs no question to the engine.
    if most_tokens(request) + wanted <= context:
        return wanted
    prompt = await _count(request, loaded)
    if prompt >= context:
        detail = f"The prompt has {prompt} tokens; this model holds {context}, prompt and answer together. Shorten it."
        raise ContextOverflow(detail, field="messages")
    return min(wanted, context - prompt)


def most_tokens(request: GenerationRequest) -> int:
    """An upper bound for the prompt's tokens, without a tokenizer."""
    tools = 0
    if request.sampling.tools:
        tools = 3 * len(json.dumps([dict(tool) for tool in request.sampling.tools])) + _TOOLS_BYTES
    return tools + sum(_bytes(message) + _TEMPLATE_BYTES for message in request.messages) + _TEMPLATE_BYTES


def _bytes(message: Message) -> int:
    if isinstance(message.content, str) and not message.tool_calls:
        return len(message.content.encode("utf-8", "surrogatepass"))
    return len(json.dumps(message.to_wire(), default=str))


def _check_abilities(request: GenerationRequest, able: Capabilities) -> None:
    """What would change the answer and cannot be done is refused, never left out in silence."""
    sampling, form = request.sampling, request.sampling.response_format
    lacking = None
    if sampling.tools and not able.tools:
        lacking = "tools"
    elif form is not None and form.get("type") != "text" and not able.json_schema:
        lacking = "response_format"
    elif sampling.logprobs is not None and not able.logprobs:
        lacking = "logprobs"
    elif sampling.top_k is not None and not able.top_k:
        lacking = "top_k"
    if lacking is not None:
        raise InvalidRequest(f"This model cannot do {lacking}.", field=lacking)
    if request.raw and not able.raw_prompt:
        raise InvalidRequest("This model does not go on from a bare prompt; ask it with messages.", field="prompt")
    if not able.images and any(_has_image(message) for message in request.messages):
        raise InvalidRequest("This model reads text only; leave the images out or ask another.", field="messages")


def _has_image(message: Message) -> bool:
    return isinstance(message.content, list) and any(part.get("type") in _IMAGES for part in message.content)


_IMAGES = frozenset(("image_url", "image", "input_image"))

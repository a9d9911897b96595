"""What all doors to a prediction share: limits, the conversation, the reservation, and our own form of the answer.

Whatever can be refused is refused in `reserve`, before the first byte; from then on errors are final events.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from starlette.requests import HTTPConnection
from starlette.types import Message as AsgiMessage
from starlette.types import Send

from app.api.bodies import NEW
from app.api.deps import allow, count_against, current_principal, get_address, get_services
from app.api.watch import ReaderTooSlow
from app.core.errors import Unauthenticated
from app.core.settings import Settings
from app.core.types import GenerationRequest, Principal
from app.security.tokens import sign_feedback_token

if TYPE_CHECKING:
    from app.api.deps import Services
    from app.core.records import PredictionRecord
    from app.models.generation import Generation
    from app.security.rate_limit import RateState

VALIDITY_S: Final = 1.5
"""How often an open stream or socket asks whether its session still lives; the answer may be three seconds old."""
_SEND_S: Final = 4.0
_SEND_TRIES: Final = 8


class UsageOut(Struct, frozen=True):
    """Tokens as the engine's own tokenizer counts them."""

    prompt_tokens: int
    completion_tokens: int


class AnswerOut(Struct, frozen=True):
    """A whole answer. ``id`` works for feedback at once; ``feedback_token`` does so without a login, for 30 days.

    ``fallback``: the problem for which the first target of a route did not answer, or null. ``examples``: how many approved
    corrections of similar questions the model was shown.
    """

    id: str
    model: str
    version: str
    text: str
    finish_reason: str
    usage: UsageOut
    cached: bool
    feedback_token: str
    conversation_id: str | None
    fallback: str | None = None
    examples: int = 0


def answer_out(prediction: PredictionRecord, settings: Settings) -> AnswerOut:
    """The answer as callers get it."""
    return AnswerOut(
        id=prediction.id,
        model=f"{prediction.provider}/{prediction.model}",
        version=prediction.version,
        text=prediction.output,
        finish_reason=prediction.finish_reason,
        usage=UsageOut(prediction.prompt_tokens, prediction.completion_tokens),
        cached=prediction.cached,
        feedback_token=sign_feedback_token(prediction.id, settings.security),
        conversation_id=prediction.conversation_id,
        fallback=prediction.fallback,
        examples=len(prediction.input.get("examples", ())),
    )


async def admit(connection: HTTPConnection) -> Principal:
    """Who wants an answer. Counts the address first, so that guessing credentials asks the database no more often than that.

    Raises TooManyRequests, Unauthenticated, Forbidden.
    """
    await count_against("predict_address", get_services(connection), await get_address(connection))
    return allow(await current_principal(connection), "predict")


async def count_call(services: Services, principal: Principal) -> RateState:
    """Counts one prediction, per user and per key. Raises TooManyRequests."""
    subjects = [principal.user_id] if principal.key_id is None else [principal.user_id, principal.key_id]
    return await count_against("predict", services, *subjects)


async def reserve(services: Services, request: GenerationRequest, principal: Principal) -> Generation:
    """Recalls the conversation if there is one, and waits for a slot. Raises whatever refuses the call.

    A new conversation is stored once the call is taken, so that one that is refused leaves nothing behind.
    """
    if request.conversation_id is None:
        return await services.models.generate(request, principal)
    if request.conversation_id != NEW:
        return await services.models.generate(await _with_history(services, request, principal), principal)
    conversation = services.memory.begin(principal, _text(request.messages[-1].content))
    generation = await services.models.generate(dataclasses.replace(request, conversation_id=conversation.id), principal)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(generation)
        await asyncio.shield(services.memory.keep(conversation))  # also for the answer that a leaving client cuts short
        stack.pop_all()
    return generation


async def ensure_valid(services: Services, principal: Principal) -> None:
    """Raises Unauthenticated where the session or key behind an open connection has ended."""
    if not await services.authenticator.still_valid(principal):
        raise Unauthenticated("The session has ended. Log in again.")


async def send_patiently(send: Send, message: AsgiMessage, services: Services, principal: Principal) -> None:
    """Sends once the client takes it. The server waits before it writes, so a try that times out has written nothing.

    Raises:
        ReaderTooSlow: the client takes nothing, or its session ended while it took nothing.
    """
    for _ in range(_SEND_TRIES):
        try:
            async with asyncio.timeout(_SEND_S):
                await send(message)
                return
        except TimeoutError:
            if not await services.authenticator.still_valid(principal):
                break
    raise ReaderTooSlow


async def _with_history(services: Services, request: GenerationRequest, principal: Principal) -> GenerationRequest:
    conversation = await services.memory.open(str(request.conversation_id), principal)
    history = await services.memory.history(conversation)
    system = [message for message in request.messages if message.role == "system"]
    turns = [message for message in request.messages if message.role != "system"]
    return dataclasses.replace(request, messages=(*system, *history, *turns), conversation_id=conversation.id)


def _text(content: str | list[dict[str, Any]] | None) -> str:
    return content if isinstance(content, str) else ""

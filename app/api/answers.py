"""What all doors to a prediction share: limits, the conversation, the reservation, and our own form of the answer.

Whatever can be refused is refused in `reserve`, before the first byte; from then on errors are final events.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import HTTPConnection
from starlette.types import Message as AsgiMessage
from starlette.types import Send

from app.api.bodies import NEW
from app.api.deps import allow, count_against, current_principal, get_address, get_services
from app.api.remembered import CitationOut, ContextOut, Remembering, citations_of, context_of
from app.api.watch import ReaderTooSlow
from app.core.errors import Unauthenticated
from app.core.settings import Settings
from app.core.types import GenerationRequest, Principal
from app.security.tokens import sign_feedback_token

if TYPE_CHECKING:
    from app.api.deps import Services
    from app.core.records import FactRecord, PredictionRecord
    from app.core.types import Context
    from app.models.generation import Completed, Generation
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
    corrections of similar questions the model was shown. ``citations``: what it was shown of the caller's documents, where they
    were asked for; ``context``: what else, where memory, documents or a conversation came in.
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
    citations: list[CitationOut] | UnsetType = UNSET
    context: ContextOut | UnsetType = UNSET


def answer_out(completed: Completed, settings: Settings) -> AnswerOut:
    """The answer as callers get it."""
    return stored_out(completed.prediction, settings, completed.context, completed.proposed)


def stored_out(
    prediction: PredictionRecord, settings: Settings, context: Context | None = None, proposed: Sequence[FactRecord] = ()
) -> AnswerOut:
    """The same, also of an answer that was cut short."""
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
        citations=citations_of(prediction, context),
        context=context_of(context, proposed),
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
    """Recalls what the call asks for, and waits for a slot. Raises whatever refuses the call.

    A new conversation is stored once the call is taken, so that one that is refused leaves nothing behind.
    """
    if request.conversation_id is None and not request.memory and request.documents is None:
        return await services.models.generate(request, principal)
    recalled = await services.recollection.recall(request, principal)
    if request.conversation_id != NEW:
        generation = await services.models.generate(recalled, principal)
        return Remembering(generation, request, principal, services.recollection)
    conversation = services.memory.begin(principal, _text(request.messages[-1].content))
    generation = await services.models.generate(dataclasses.replace(recalled, conversation_id=conversation.id), principal)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(generation)
        await asyncio.shield(services.memory.keep(conversation))  # also for the answer that a leaving client cuts short
        stack.pop_all()
    return Remembering(generation, request, principal, services.recollection)


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


def _text(content: str | list[dict[str, Any]] | None) -> str:
    return content if isinstance(content, str) else ""

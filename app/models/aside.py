"""A call of the service's own on behalf of a user, beside their calls: to sum up a conversation, say.

It goes to the very model that is named and only if that is loaded, never to another; takes a slot only where nobody is served,
and gives it back as soon as somebody waits. It is stored as no prediction and kept by no cache; its price counts in the user's
budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Final

from app.core.errors import EngineUnavailable, Overloaded
from app.core.ids import uuid7
from app.core.settings import Model
from app.core.types import Answer, Folder, GenerationRequest, Message, Principal, Usage
from app.models.costs import Hold, Ledger
from app.models.deployment import Deployment
from app.models.fitting import fit
from app.models.pool import Pool
from app.models.routing import Names
from app.models.showing import shown
from app.models.targets import Targets

_POLL_S: Final = 0.1
_WAIT_S: Final = 60.0
_CLOSE_S: Final = 10.0
_CHARACTERS_PER_TOKEN: Final = 3
_MESSAGE_TOKENS: Final = 4
"""What a chat template writes around one message; for the estimate alone."""


class Aside:
    """Answers and counts for the service's own use. Arguments as in `app.models.calls.Desk`."""

    def __init__(self, settings: Model, names: Names, pool: Pool, targets: Targets, ledger: Ledger | None) -> None:
        self._settings = settings
        self._names = names
        self._pool = pool
        self._targets = targets
        self._ledger = ledger

    def remote(self, model: str) -> bool:
        """Whether ``model`` is other people's. Raises UnknownModel."""
        return self._pool.is_remote(self._names.plan(model).candidates[0].spec)

    async def count(self, messages: Sequence[Message], model: str) -> int:
        """Tokens of a prompt of ``messages`` by the tokenizer of ``model``; a high estimate where it is not loaded, and
        for other people's, where each question would be a call that tells them what was said.

        Raises AprendizError as the engine does.
        """
        deployment = self._loaded(model)
        if deployment is None or deployment.loaded.capabilities.remote:
            texts = (str(message.to_wire().get("content") or "") for message in messages)
            return sum(-(-len(text) // _CHARACTERS_PER_TOKEN) + _MESSAGE_TOKENS for text in texts)
        return await deployment.loaded.count_tokens(GenerationRequest(tuple(messages)))

    async def answer(self, request: GenerationRequest, user_id: str) -> Answer:
        """A whole answer of the model that ``request`` names, for this user.

        Raises:
            EngineUnavailable: it is not loaded.
            Overloaded: others need its slots, now or for a minute already.
            UnknownModel, BudgetExhausted, and whatever a call of the user's own would raise.
        """
        deployment = self._loaded(request.model)
        if deployment is None:
            raise EngineUnavailable("The model of this conversation is not loaded.", retry_after=30)
        await self._free(deployment)
        principal = Principal(user_id=user_id, username="", role="user", scopes=frozenset(), via="token")
        async with self._targets.borrow(deployment.spec, user_id) as held:
            hold, cost = Hold(), None
            if self._ledger is not None:
                hold = await self._ledger.admit(request, principal, [held.name], uuid7())
            try:
                fitted = await fit(request, held.loaded, self._settings)
                answer = await self._fold(fitted, held)
                cost = self._price(held, answer.usage)
                return answer
            finally:
                hold.settle(cost, stored=False)

    async def _fold(self, request: GenerationRequest, deployment: Deployment) -> Answer:
        folder = Folder()
        stream = deployment.loaded.batches(shown(request))
        try:
            async for batch in stream:
                for event in batch:
                    folder.add(event)
                if deployment.scheduler.waiting:
                    raise Overloaded("Somebody waits for the model; this can wait.", retry_after=30)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await stream.aclose()
        return folder.answer()

    def _loaded(self, model: str | None) -> Deployment | None:
        deployment = self._pool.find(self._names.plan(model).candidates[0].spec)
        return None if deployment is None or deployment.version is None else deployment

    def _price(self, deployment: Deployment, usage: Usage) -> int | None:
        return None if self._ledger is None else self._ledger.cost(deployment.name, usage)

    async def _free(self, deployment: Deployment) -> None:
        """Waits until nobody waits and a slot is free; on our own machine, until nobody is served, whom it would slow down.

        It does not queue: there it would stand before users who come later.
        """
        scheduler = deployment.scheduler
        most = scheduler.slots if self._pool.is_remote(deployment.spec) else 1
        deadline = time.monotonic() + _WAIT_S
        while scheduler.waiting or scheduler.running >= most:
            if time.monotonic() >= deadline:
                raise Overloaded("Users leave the model no slot; this can wait.", retry_after=30)
            await asyncio.sleep(_POLL_S)

"""What an answer says of what was found for it: citations, facts, turns, what was left out; and what it leaves behind.

The stored prediction keeps ids only, so all of this is told once, with the answer. Nothing here searches anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct, UnsetType

from app.models.generation import Completed, Generation

if TYPE_CHECKING:
    from app.core.records import FactRecord, PredictionRecord
    from app.core.types import Context, Event, GenerationRequest, Principal
    from app.memory.recall import Recollection

_CITED: Final = re.compile(r"\[(\d{1,3}(?:\s{0,2}[,;]\s{0,2}\d{1,3}){0,15})\]")
_NUMBER: Final = re.compile(r"\d+")


class CitationOut(Struct, frozen=True):
    """A passage that the model was shown as ``[index]``. ``place``: page, section, line or row, whichever the format has.

    ``score``: from 0 to 1, within one search. ``cited``: whether the answer names its number.
    """

    index: int
    document_id: str
    chunk_id: str
    name: str
    collection: str
    place: Mapping[str, Any]
    text: str
    score: float
    cited: bool


class FactOut(Struct, frozen=True):
    """A fact of the caller's."""

    id: str
    text: str


class ContextOut(Struct, frozen=True):
    """What the model was shown beside the caller's messages, and what was not.

    ``proposed``: facts that the caller's message states, to be kept or dropped by them. ``turns``: earlier turns of the
    conversation; ``summary``: whether those before were told in short. ``left_out``: how many ``turns``, ``facts`` and
    ``passages`` were found and did not fit, and ``summary`` where it was shortened. ``notes``: what went otherwise than asked.
    """

    facts: Sequence[FactOut]
    proposed: Sequence[FactOut]
    turns: int
    summary: bool
    left_out: Mapping[str, int]
    notes: Sequence[str]


def citations_of(prediction: PredictionRecord, context: Context | None) -> list[CitationOut] | UnsetType:
    """The passages that were shown; UNSET where no documents were asked for."""
    if context is None or "passages" not in prediction.input.get("context", ()):
        return UNSET
    cited = {int(number) for found in _CITED.finditer(prediction.output) for number in _NUMBER.findall(found.group(1))}
    return [
        CitationOut(
            index=index,
            document_id=passage.document_id,
            chunk_id=passage.id,
            name=passage.name,
            collection=passage.collection,
            place=passage.place,
            text=passage.text,
            score=passage.score,
            cited=index in cited,
        )
        for index, passage in enumerate(context.passages, 1)
    ]


def context_of(context: Context | None, proposed: Sequence[FactRecord] = ()) -> ContextOut | UnsetType:
    """What was shown; UNSET where nothing was asked for."""
    if context is None:
        return UNSET
    return ContextOut(
        facts=[FactOut(fact.id, fact.text) for fact in context.facts],
        proposed=[FactOut(fact.id, fact.text) for fact in proposed],
        turns=context.turns,
        summary=context.summary is not None,
        left_out=context.left_out,
        notes=context.notes,
    )


def mark_of(context: Context) -> bytes:
    """The header ``X-Aprendiz-Context``: counts."""
    counts = {"passages": len(context.passages), "facts": len(context.facts), "turns": context.turns}
    counts["left-out"] = sum(context.left_out.values())
    return "; ".join(f"{name}={count}" for name, count in counts.items()).encode()


class Remembering(Generation):
    """A generation that leaves something behind: facts to be proposed, a turn to be summed up. Else as the one inside.

    Args:
        inside: the generation.
        request: as its caller made it.
        recollection: takes note.
    """

    def __init__(
        self, inside: Generation, request: GenerationRequest, principal: Principal, recollection: Recollection
    ) -> None:
        self.id = inside.id
        self.conversation_id = inside.conversation_id
        self.cached = inside.cached
        self._inside = inside
        self._request = request
        self._principal = principal
        self._recollection = recollection

    @property
    def model(self) -> str:
        """As `Generation.model`."""
        return self._inside.model

    @property
    def version(self) -> str:
        """As `Generation.version`."""
        return self._inside.version

    @property
    def fallback(self) -> str | None:
        """As `Generation.fallback`."""
        return self._inside.fallback

    @property
    def examples(self) -> int:
        """As `Generation.examples`."""
        return self._inside.examples

    @property
    def context(self) -> Context | None:
        """As `Generation.context`."""
        return self._inside.context

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._inside.__aexit__(kind, value, traceback)

    async def batches(self) -> AsyncGenerator[Sequence[Event] | Completed, None]:
        """As `Generation.batches`; the facts are proposed before the end is told."""
        async with contextlib.aclosing(self._inside.batches()) as batches:
            async for batch in batches:
                yield await self._remembered(batch) if isinstance(batch, Completed) else batch

    async def _remembered(self, completed: Completed) -> Completed:
        if self.conversation_id is not None:
            self._recollection.note(self.conversation_id, self._principal)
        proposed = await self._recollection.learn(self._request, self._principal, completed.prediction.id)
        return dataclasses.replace(completed, proposed=proposed) if proposed else completed

"""What ``models`` needs from the layers below it, as small protocols: the repositories of ``db`` and the provider registry
fit them.

Only shapes stand here, so that tests can hand in small classes of their own. No behaviour, no default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.core.records import UNSET, AliasRecord, AuditRecord, PredictionRecord, Unset, VersionRecord
from app.core.types import Example, Message
from app.providers.base import BaseLLMProvider


class Providers(Protocol):
    """The provider registry."""

    def get(self, name: str) -> BaseLLMProvider:
        """The provider of that name. Raises UnknownModel where it is not allowed or not installed."""


class PredictionStore(Protocol):
    """Where answered calls are kept."""

    async def add(self, prediction: PredictionRecord) -> None:
        """Stores it; durable when it returns. Raises StorageUnavailable or StorageFull."""


class VersionStore(Protocol):
    """Which versions have been loaded here."""

    async def put(self, version: VersionRecord) -> None:
        """Stores it; an earlier record of the same id keeps its ``created_at``."""

    async def list(self) -> list[VersionRecord]:
        """All of them."""

    async def get(self, version_id: str) -> VersionRecord | None:
        """One of them."""


class AliasStore(Protocol):
    """Where aliases point."""

    async def list(self) -> list[AliasRecord]:
        """All of them."""

    async def move(self, alias: AliasRecord, *, previous: Mapping[str, Any] | Unset | None = UNSET) -> AliasRecord:
        """Writes it in one transaction and returns it with ``previous`` as told, else filled from the row that it replaced."""


class AuditLog(Protocol):
    """Who did what."""

    async def add(self, record: AuditRecord) -> None:
        """Appends one line."""


class Recall(Protocol):
    """Approved corrections, by similarity (`app.memory.examples.ExampleMemory`)."""

    async def recall(self, messages: Sequence[Message], version: str | None) -> tuple[Example, ...]:
        """Those to be shown with this conversation to a model of that version, the most similar last. Never raises."""

    async def refresh(self) -> None:
        """Reads again what is approved, after answers or feedback were deleted. Never raises."""


@dataclass(frozen=True, slots=True)
class ModelStores:
    """The repositories that the model manager writes to."""

    predictions: PredictionStore
    versions: VersionStore
    aliases: AliasStore
    audit: AuditLog

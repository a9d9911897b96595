"""From what is loaded to the rows that name it, and back: specs, versions, and what an alias meant before. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from app.core.records import AliasRecord, VersionRecord
from app.core.types import ModelSpec, VersionInfo


def to_record(spec: ModelSpec, version: VersionInfo) -> VersionRecord:
    """The row of a version that ``spec`` loaded; `spec_of_version` reads it back. Its ``model`` holds no path."""
    details = {**version.details, "context_tokens": version.context_tokens, "device": spec.device, "adapter": spec.adapter}
    public = spec.public_name.partition("/")[2]
    if public != spec.model:
        details["spec_model"] = spec.model
    return VersionRecord(
        id=version.id,
        provider=spec.provider,
        model=public,
        base_hash=version.base_hash,
        adapter_hash=version.adapter_hash,
        template_hash=version.template_hash,
        created_at=datetime.now(UTC),
        details=details,
    )


def spec_of(record: AliasRecord) -> ModelSpec:
    """What an alias record means."""
    return ModelSpec(record.provider, record.model, record.device, record.adapter)


def spec_of_version(record: VersionRecord) -> ModelSpec:
    """What must be loaded for a version."""
    details = record.details
    model = str(details.get("spec_model", record.model))
    return ModelSpec(record.provider, model, str(details.get("device", "auto")), details.get("adapter"))


def spec_of_previous(previous: Mapping[str, Any]) -> ModelSpec:
    """What an alias meant before; see `app.core.records.AliasRecord`."""
    return ModelSpec(
        str(previous["provider"]), str(previous["model"]), str(previous.get("device", "auto")), previous.get("adapter")
    )


def earlier(previous: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """All that an alias meant before, the last first."""
    while previous:
        yield previous
        previous = previous.get("previous")

"""What makes a version: hashes of weights, adapter and template, and the id over them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from app.core.types import VersionInfo

_ID_DIGITS = 16


def version_info(
    provider: str,
    model: str,
    *,
    base_hash: str | None,
    template_hash: str | None,
    adapter_hash: str | None = None,
    context_tokens: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> VersionInfo:
    """A `VersionInfo` with its id: equal provider and hashes, equal id."""
    parts = (provider, base_hash or "", adapter_hash or "", template_hash or "")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return VersionInfo(
        id=digest[:_ID_DIGITS],
        provider=provider,
        model=model,
        base_hash=base_hash,
        adapter_hash=adapter_hash,
        template_hash=template_hash,
        context_tokens=context_tokens,
        details=dict(details or {}),
    )


def text_hash(text: str) -> str:
    """SHA-256 hex of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

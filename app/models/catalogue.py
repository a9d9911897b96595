"""The models we know by name: where each comes from, and the hashes that it must have. Data; nothing is fetched or opened
here."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from app.core.errors import UnknownModel

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What a model may be called on disk (to be matched in full): no path, no link, no hidden file can be spelled with it."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model. ``package``: a pinned requirement whose wheel holds the file ``member``; sizes in bytes, hashes SHA-256 in
    hex.

    ``also``: further members with their hashes. ``platform``: pip's name of the platform whose wheel is meant, where the
    package has one for each; only data is taken from it. ``convert``: how the members become a model's folder (see
    `app.models.conversion`), with ``options`` for it; ``made``: the hashes of what it makes. Empty: ``member`` is the model.
    """

    name: str
    provider: str
    package: str
    package_sha256: str
    package_bytes: int
    member: str
    sha256: str
    bytes: int
    licence: str
    context: int
    description: str
    also: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    convert: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)


def catalogue() -> Mapping[str, CatalogueEntry]:
    """All entries by name."""
    text = files("app.models").joinpath("catalogue.json").read_text(encoding="utf-8")
    return {name: CatalogueEntry(name=name, **fields) for name, fields in json.loads(text).items()}


def entry(name: str) -> CatalogueEntry:
    """The entry called ``name``. Raises UnknownModel with the nearest known name."""
    known = catalogue()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        raise UnknownModel(f"The catalogue has no model {name[:100]!r}; {hint}", field="model")
    return known[name]

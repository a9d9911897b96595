"""Reads server-sent events."""

from __future__ import annotations

import json
from typing import Any


def read_events(text: str) -> list[tuple[str, Any]]:
    """``(event, data)`` of each block; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events

"""Conversations that are too long: what is dropped, what stays, and how often the engine is asked."""

from __future__ import annotations

import pytest

from app.core.errors import ContextOverflow
from app.core.settings import Model
from app.core.types import GenerationRequest, Message, ModelSpec, Sampling
from app.models.fitting import fit
from app.models.shortening import shorten
from app.providers.base import Capabilities
from tests.models.remote import RemoteModel

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def conversation(turns: int) -> tuple[Message, ...]:
    """A system message and ``turns`` questions, each answered by way of a tool, the last one not yet."""
    messages = [Message("system", "s")]
    for turn in range(turns):
        messages += [
            Message("user", f"u{turn}"),
            Message("assistant", None, tool_calls=(CALL,)),
            Message("tool", "t", tool_call_id="c"),
            Message("assistant", f"a{turn}"),
        ]
    return tuple(messages[:-3])


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 6, 9, 41, 42, 100])
@pytest.mark.parametrize("turns", [1, 2, 3, 12])
async def test_as_few_as_needed_are_dropped(turns: int, most: int) -> None:
    asked = 0

    async def count(request: GenerationRequest) -> int:
        nonlocal asked
        asked += 1
        return len(request.messages)

    whole = GenerationRequest(conversation(turns))
    shorter = await shorten(whole, count, most=most)
    kept = shorter.messages
    assert kept[0].role == "system"
    assert kept[1].role == "user"
    assert kept[1:] == whole.messages[len(whole.messages) - len(kept) + 1 :]
    assert len(kept) <= most or kept[1:] == whole.messages[-1:]
    assert len(whole.messages) <= most or len(kept) + 4 > most or len(kept) + 4 > len(whole.messages)
    assert asked <= 6


async def test_only_who_wants_it_is_shortened() -> None:
    model = RemoteModel(ModelSpec("p", "m"), Capabilities(slots=1, context_tokens=256))
    settings = Model(system_prompt="", max_tokens=16)
    turns = tuple(Message(role, "word " * 60) for role in ("user", "assistant", "user", "assistant", "user"))
    request = GenerationRequest(turns, sampling=Sampling(), truncate=True)
    fitted = await fit(request, model, settings)
    assert fitted.messages == turns[2:]
    with pytest.raises(ContextOverflow):
        await fit(GenerationRequest(turns), model, settings)
    with pytest.raises(ContextOverflow):
        await fit(GenerationRequest((Message("user", "word " * 300),), truncate=True), model, settings)

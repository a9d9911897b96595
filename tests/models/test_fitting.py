"""A request made to fit its model: what is filled in, what is refused, and what is left as the caller wrote it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from app.core.errors import ContextOverflow, InvalidRequest
from app.core.settings import Memory, Model
from app.core.types import Context, Example, GenerationRequest, Message, ModelSpec, Passage, Sampling
from app.models.fitting import fit
from app.models.showing import shown
from app.providers.base import Capabilities
from tests.models.remote import RemoteModel

SETTINGS = Model(system_prompt="Be brief.", max_tokens=64, temperature=0.3)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def model(**able: Any) -> RemoteModel:
    return RemoteModel(ModelSpec("p", "m"), Capabilities(**{"slots": 1, "context_tokens": 256, **able}))


def ask(content: Any = "hi", *, raw: bool = False, **sampling: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", content),), sampling=Sampling(**sampling), raw=raw)


async def test_other_peoples_models_get_it_as_the_caller_wrote_it() -> None:
    for request in (ask(), ask(max_tokens=10_000, top_p=0.5), ask("word " * 100)):
        assert await fit(request, model(remote=True), SETTINGS) is request


@pytest.mark.parametrize("remote", [True, False])
async def test_a_prompt_that_fills_a_known_context_is_an_overflow(remote: bool) -> None:
    with pytest.raises(ContextOverflow) as caught:
        await fit(ask("word " * 256), model(remote=remote), SETTINGS)
    assert "256" in caught.value.detail and caught.value.field == "messages"
    request = ask("word " * 300)
    assert await fit(request, model(remote=True, context_tokens=None), SETTINGS) is request, "unknown: its vendor checks"


async def test_a_bare_prompt_gets_no_system_message() -> None:
    fitted = await fit(ask("Once upon", raw=True), model(raw_prompt=True), SETTINGS)
    assert [message.role for message in fitted.messages] == ["user"]
    assert (fitted.sampling.max_tokens, fitted.sampling.temperature) == (64, 0.3)
    assert [message.role for message in (await fit(ask(), model(), SETTINGS)).messages] == ["system", "user"]


async def test_what_the_caller_says_is_kept() -> None:
    wanted = Sampling(max_tokens=5, temperature=0.0, seed=3, stop=("x",), reasoning_effort="low", thinking={"type": "adaptive"})
    request = GenerationRequest((Message("developer", "Rules."), Message("user", "hi")), sampling=wanted, prediction_id="p")
    fitted = await fit(request, model(), SETTINGS)
    assert fitted == request


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize(
    ("request_", "ability", "field"),
    [
        (ask(tools=({"type": "function"},)), "tools", "tools"),
        (ask(response_format={"type": "json_schema"}), "json_schema", "response_format"),
        (ask(logprobs=2), "logprobs", "logprobs"),
        (ask(top_k=5), "top_k", "top_k"),
        (ask(raw=True), "raw_prompt", "prompt"),
        (ask([{"type": "text", "text": "What?"}, IMAGE]), "images", "messages"),
        (ask([{"type": "image"}]), "images", "messages"),
    ],
)
async def test_an_ability_is_needed_and_enough(request_: GenerationRequest, ability: str, field: str, remote: bool) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await fit(request_, model(remote=remote), SETTINGS)
    assert caught.value.field == field
    await fit(request_, model(**{"remote": remote, ability: True}), SETTINGS)


async def test_text_in_parts_and_a_plain_format_need_no_ability() -> None:
    await fit(ask([{"type": "text", "text": "What?"}], response_format={"type": "text"}), model(), SETTINGS)


async def test_hints_need_no_ability() -> None:
    fitted = await fit(ask(reasoning_effort="high", thinking={"type": "enabled", "budget_tokens": 1024}), model(), SETTINGS)
    assert fitted.sampling.reasoning_effort == "high"


async def test_what_was_found_goes_to_other_peoples_models_too_and_is_counted_by_estimate() -> None:
    far = model(remote=True, context_tokens=None)
    far.count_tokens = None  # type: ignore[method-assign,assignment]  # each question would be a call of theirs
    passages = tuple(Passage(str(n), "d", "n", "c", "word " * 60, 1.0) for n in range(6))
    found = dataclasses.replace(ask("When?"), context=Context(passages=passages), examples=(Example("e", "q", "a"),))
    fitted = await fit(found, far, SETTINGS, Memory(context_tokens=300))
    assert fitted.context is not None and fitted.examples == ()
    assert 1 <= len(fitted.context.passages) < 6
    assert fitted.context.left_out == {"passages": 6 - len(fitted.context.passages)}
    assert fitted.messages == found.messages


async def test_an_answer_keeps_its_room_beside_what_was_found() -> None:
    passages = tuple(Passage(str(n), "d", "n", "c", "word " * 40, 1.0) for n in range(6))
    found = dataclasses.replace(ask("When?"), context=Context(passages=passages), examples=(Example("e", "q?", "a"),))
    fitted = await fit(found, model(), SETTINGS)
    assert fitted.sampling.max_tokens == 64
    assert fitted.context is not None and fitted.context.left_out["passages"] >= 1
    whole = await model().count_tokens(shown(fitted))
    assert whole + 64 <= 256

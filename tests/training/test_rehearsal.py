"""What is rehearsed: asked once for each base and system prompt, never one of the gate's questions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

from app.core.types import Answer, FinishReason, GenerationRequest, ModelSpec, Usage, VersionInfo
from app.training.rehearsal import Rehearsal, prompts

BASE = ModelSpec("llamacpp", "small")


class Asked:
    """A version that says how long its question is; every third answer is cut, every fifth empty."""

    def __init__(self, version: str) -> None:
        self.version = VersionInfo(version, "llamacpp", "small", None, None, None)
        self.requests: list[GenerationRequest] = []

    async def answer(self, request: GenerationRequest) -> Answer:
        self.requests.append(request)
        count = len(self.requests)
        reason: FinishReason = "length" if count % 3 == 0 else "stop"
        return Answer("" if count % 5 == 0 else f"answer {count}", reason, Usage())


class Models:
    def __init__(self) -> None:
        self.asked = Asked("v1")

    @asynccontextmanager
    async def trial(self, spec: ModelSpec) -> AsyncIterator[Asked]:
        assert spec == BASE
        yield self.asked


async def test_the_base_is_asked_once_and_its_answers_become_rows(tmp_path: Path) -> None:
    models = Models()
    rehearsal = Rehearsal(models, tmp_path / "bases", system_prompt="Be short.")
    path = await rehearsal.rows(BASE)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(models.asked.requests) == len(prompts())
    assert len(rows) == len(prompts()) - len(prompts()) // 5
    assert {row["kind"] for row in rows} == {"sft"}
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    assert any(row["cut"] for row in rows)
    assert not all(row["cut"] for row in rows)
    assert path.stat().st_mode & 0o777 == 0o600
    assert await rehearsal.rows(BASE) == path
    assert len(models.asked.requests) == len(prompts())


async def test_another_base_or_system_prompt_is_asked_anew(tmp_path: Path) -> None:
    models = Models()
    first = await Rehearsal(models, tmp_path, system_prompt="Be short.").rows(BASE)
    second = await Rehearsal(models, tmp_path, system_prompt="").rows(BASE)
    models.asked = Asked("v2")
    third = await Rehearsal(models, tmp_path, system_prompt="Be short.").rows(BASE)
    assert len({first, second, third}) == 3
    assert json.loads(second.read_text(encoding="utf-8").splitlines()[0])["prompt"][0]["role"] == "user"


def test_no_question_is_one_of_the_gate() -> None:
    text = resources.files("app.training.gate").joinpath("guard_prompts.json").read_text(encoding="utf-8")
    guards = json.loads(text)
    judged = {each["prompt"].casefold() for each in (*guards["prompts"], *guards["texts"])}
    assert judged
    assert not judged & {prompt.casefold() for prompt in prompts()}
    assert len(set(prompts())) == len(prompts()) >= 40

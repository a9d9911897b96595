"""The default provider with the real engine and the bundled model: answers, limits, cancelling, faults, hostile files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import AprendizError, EngineUnavailable, InvalidRequest, ModelLoadFailed, UnknownModel
from app.core.types import (
    EngineState,
    Finished,
    GenerationRequest,
    Message,
    ModelSpec,
    Sampling,
    TextDelta,
    TokenLogprobs,
    fold,
)
from app.providers.base import LoadedModel, ProviderContext
from app.providers.contract import ask, closes_twice, verify
from app.providers.engine import Timings
from app.providers.llamacpp import LlamaCppProvider

MakeContext = Callable[..., ProviderContext]
pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

FAST = Timings(health_interval_s=0.2, health_timeout_s=2, wedged_after_s=4, backoff_first_s=0.1)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
UNLIKE_A_SCHEMA = {"type": "nonsense"}


@asynccontextmanager
async def opened(context: ProviderContext, path: Path, **spec: Any) -> AsyncIterator[LoadedModel]:
    provider = LlamaCppProvider(context, timings=FAST)
    model = await provider.open(ModelSpec("llamacpp", str(path), **spec), on_state=lambda state: None)
    try:
        yield model
    finally:
        await model.aclose()


def pid_of(model: LoadedModel) -> int:
    pid = model.status().pid
    assert pid is not None
    return pid


async def ready_again(model: LoadedModel, old_pid: int) -> None:
    for _ in range(1200):
        if model.status().state is EngineState.READY and model.status().pid != old_pid:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the engine did not come back")


async def test_fulfils_the_contract(make_context: MakeContext, model_file: Path) -> None:
    provider = LlamaCppProvider(make_context())
    spec = ModelSpec("llamacpp", str(model_file))
    assert await verify(lambda: provider.open(spec, on_state=lambda state: None)) == []


async def test_one_engine_many_questions(make_context: MakeContext, model_file: Path) -> None:
    """One load for what needs no engine of its own."""
    async with opened(make_context(), model_file) as model:
        await version_and_capabilities(model, model_file)
        await logprobs_come_with_their_tokens(model)
        await seed_repeats(model)
        await json_schema_holds(model)
        await what_it_cannot_take_is_refused(model)
        await many_at_once(model)
        await long_prefill_is_cancelled(model)
        await closes_twice(model)


async def version_and_capabilities(model: LoadedModel, model_file: Path) -> None:
    with model_file.open("rb") as file:
        assert model.version.base_hash == hashlib.file_digest(file, "sha256").hexdigest()
    assert model.version.template_hash is not None
    assert model.version.context_tokens == model.capabilities.context_tokens == 512
    assert (model.capabilities.slots, model.capabilities.tools) == (4, True)
    status = model.status()
    assert (status.device, status.restarts, status.error) == ("cpu", 0, None)


async def logprobs_come_with_their_tokens(model: LoadedModel) -> None:
    events = [event async for event in model.stream(ask(max_tokens=4, logprobs=2))]
    tokens = [entry for event in events if isinstance(event, TokenLogprobs) for entry in event.content]
    assert "".join(entry["token"] for entry in tokens).startswith(
        "".join(event.text for event in events if isinstance(event, TextDelta))
    )
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in tokens)
    bare = [event async for event in model.stream(ask(max_tokens=4, logprobs=0)) if isinstance(event, TokenLogprobs)]
    assert sum(len(event.content) for event in bare) == len(tokens), "also where no alternatives are asked for"


async def seed_repeats(model: LoadedModel) -> None:
    def request(seed: int) -> GenerationRequest:
        return ask("Tell a story.", max_tokens=12, temperature=1.5, seed=seed)

    await fold(model.stream(request(7)))  # fills the prefix cache, so that the next two see the same
    first, second = [(await fold(model.stream(request(7)))).text for _ in range(2)]
    assert first == second
    assert first != (await fold(model.stream(request(8)))).text
    await fold(model.stream(request(2**63)))


async def json_schema_holds(model: LoadedModel) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await fold(model.stream(ask(max_tokens=60, response_format=form)))
    assert list(json.loads(answer.text)) == ["city"]


async def what_it_cannot_take_is_refused(model: LoadedModel) -> None:
    picture: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    nonsense = {"type": "json_schema", "json_schema": {"name": "x", "schema": UNLIKE_A_SCHEMA}}
    requests = {
        "text only": GenerationRequest((Message("user", picture),)),
        "at most 512": ask("word " * 600),
        "cannot enforce": ask(response_format=nonsense),
    }
    for words, request in requests.items():
        with pytest.raises(InvalidRequest, match=words):
            await fold(model.stream(request))
    answer = await fold(model.stream(ask(tools=(TOOL,), tool_choice="none", max_tokens=2)))
    assert answer.usage.completion_tokens == 2


async def many_at_once(model: LoadedModel) -> None:
    """Beyond its slots the engine queues by itself; nothing is lost."""
    answers = await asyncio.gather(*(fold(model.stream(ask(f"Say {n}", max_tokens=4))) for n in range(12)))
    assert all(0 < answer.usage.completion_tokens <= 4 for answer in answers)


async def long_prefill_is_cancelled(model: LoadedModel) -> None:
    """Left while they read their prompts, on all slots and in the queue: the next request does not wait for them."""
    requests = [ask(f"{number} " * 230, max_tokens=200) for number in range(8)]
    tasks = [asyncio.create_task(fold(model.stream(request))) for request in requests]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(60):
        assert (await fold(model.stream(ask(max_tokens=1)))).usage.completion_tokens == 1


async def test_kill_in_mid_stream(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(), model_file) as model:
        pid = pid_of(model)
        stream = model.stream(ask("Tell a long story.", max_tokens=400))
        await anext(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="stopped while it answered"):
            await fold(stream)
        with contextlib.suppress(EngineUnavailable):  # it may be back already
            await model.count_tokens(ask())
        await ready_again(model, pid)
        assert (await fold(model.stream(ask(max_tokens=2)))).usage.completion_tokens == 2
        assert model.status().restarts == 1


@pytest.mark.slow
async def test_stopped_process_is_noticed(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(), model_file) as model:
        pid = pid_of(model)
        stream = model.stream(ask("Tell a long story.", max_tokens=400))
        await anext(stream)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable):
            await fold(stream)
        await ready_again(model, pid)
        assert (await fold(model.stream(ask(max_tokens=2)))).usage.completion_tokens == 2


async def test_key_is_needed(make_context: MakeContext, model_file: Path, runtime_dir: Path) -> None:
    async with opened(make_context(), model_file):
        socket = next(iter(os.listdir(runtime_dir)))
        for path, status in (("/props", b"401"), ("/tokenize", b"401"), ("/health", b"200")):
            reader, writer = await asyncio.open_unix_connection(str(runtime_dir / socket))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.read()).split()[1] == status
            writer.close()


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "magic and noise": b"GGUF" + hashlib.shake_128(b"noise").digest(4000),
    "only magic": b"GGUF",
    "lying counts": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    "array of 2^40": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string(b"a") + struct.pack("<IIQ", 9, 0, 2**40),
    "nested arrays": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + string(b"a")
    + struct.pack("<I", 9)
    + struct.pack("<IQ", 9, 1) * 200,
    "string beyond the file": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62),
    "tensor beyond the file": b"GGUF"
    + struct.pack("<IQQ", 3, 1, 1)
    + string(b"general.architecture")
    + struct.pack("<I", 8)
    + string(b"llama")
    + string(b"token_embd.weight")
    + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 2**50),
    "empty and valid": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_file_stays_in_the_child(make_context: MakeContext, tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelLoadFailed) as caught:
        async with opened(make_context(load_timeout_s=20, slots=1), path):
            pass
    assert str(tmp_path) not in caught.value.detail
    assert len(caught.value.detail) > 30


def truncated(source: Path, target: Path, share: float) -> Path:
    whole = source.read_bytes()
    target.write_bytes(whole[: int(len(whole) * share)])
    return target


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
async def test_truncated_file(make_context: MakeContext, model_file: Path, tmp_path: Path, share: float) -> None:
    path = truncated(model_file, tmp_path / "m.gguf", share)
    with pytest.raises(ModelLoadFailed):
        async with opened(make_context(slots=1), path):
            pass


async def test_too_little_memory(make_context: MakeContext, model_file: Path) -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        async with opened(make_context(engine_memory_mb=200), model_file):
            pass
    assert "memory" in caught.value.detail


async def test_what_cannot_be_opened_is_said(make_context: MakeContext, model_file: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "model.gguf"
    pickle.write_bytes(b"\x80\x04cos\nsystem\n")
    cases: list[tuple[Path, dict[str, Any], type[AprendizError], str]] = [
        (tmp_path / "none", {}, UnknownModel, "aprendiz models pull"),
        (pickle, {}, ModelLoadFailed, "GGUF"),
        (tmp_path, {}, ModelLoadFailed, "not a file"),
        (model_file, {"adapter": "x"}, ModelLoadFailed, "no such adapter"),
        (model_file, {"device": "cuda"}, ModelLoadFailed, "no cuda device"),
    ]
    for path, spec, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            async with opened(make_context(), path, **spec):
                pass
        assert str(tmp_path) not in caught.value.detail or error is UnknownModel


async def test_finished_follows_the_sampling(make_context: MakeContext, model_file: Path) -> None:
    context = make_context(max_tokens=5)
    async with opened(context, model_file) as model:
        request = GenerationRequest((Message("user", "Count to fifty."),), sampling=Sampling(temperature=0.0))
        last = [event async for event in model.stream(request)][-1]
        assert isinstance(last, Finished)
        assert (last.reason, last.usage.completion_tokens) == ("length", 5), "the setting max_tokens is the default"


async def test_words_that_spell_control_tokens_are_words(make_context: MakeContext, model_file: Path) -> None:
    async with opened(make_context(), model_file) as model:

        async def size(text: str) -> int:
            return await model.count_tokens(GenerationRequest((Message("user", text),)))

        empty = await size("a")
        for spelled in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"):
            # As a control token each would be one token; as text it is several.
            assert await size("a" + spelled * 20) - empty > 60
        assert await size("a < b | c > d") - empty < 12

"""Two models switched under load: no failed answer, no mixed answer; an engine killed in mid-stream comes back (B32)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.harness import ServiceProcess, predict

MODEL = os.environ.get("APRENDIZ_TEST_MODEL", "")


async def read_stream(client: httpx.AsyncClient, url: str, headers: dict[str, str], **body: Any) -> tuple[list[str], dict[str, Any]]:
    """The deltas and the closing object of one streamed answer."""
    deltas: list[str] = []
    event = ""
    async with client.stream("POST", f"{url}/predict", json={"stream": True, **body}, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                if event == "delta":
                    deltas.append(data["text"])
                elif event == "done":
                    return deltas, data
                else:
                    raise AssertionError(f"{event}: {data}")
    raise AssertionError("the stream was cut")


async def switch_under_load(service: ServiceProcess, headers: dict[str, str], models: list[dict[str, str]], switches: int) -> dict[str, int]:
    """Twenty clients stream without pause while the alias moves; returns answers per version."""
    done = asyncio.Event()
    served: dict[str, set[str]] = {}
    counts: dict[str, int] = {}

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        while not done.is_set():
            deltas, last = await read_stream(client, service.url, headers, prompt=f"client {number} says hello", max_tokens=24)
            assert "".join(deltas) == last["text"], "the pieces differ from the whole"
            served.setdefault(last["version"], set()).add(last["model"])
            counts[last["version"]] = counts.get(last["version"], 0) + 1

    async with httpx.AsyncClient(timeout=120) as client:
        clients = [asyncio.create_task(ask(client, number)) for number in range(20)]
        try:
            for turn in range(switches):
                answer = await client.post(f"{service.url}/model", json=models[turn % len(models)], headers=headers)
                assert answer.status_code == 200, answer.text
                after = await client.post(f"{service.url}/predict", json={"prompt": "who?", "max_tokens": 4}, headers=headers)
                assert after.json()["model"].endswith(models[turn % len(models)]["model"].rsplit("/", 1)[-1]), after.text
        finally:
            done.set()
            results = await asyncio.gather(*clients, return_exceptions=True)
    assert [error for error in results if error is not None] == []
    assert all(len(names) == 1 for names in served.values()), "one version answered under two names"
    return counts


async def test_fifty_switches_under_twenty_streams(tmp_path: Path) -> None:
    models = [{"provider": "echo", "model": "upper"}, {"provider": "echo", "model": "echo"}]
    limits = {"APRENDIZ_RATE_LIMITS__ENABLED": "false"}
    with ServiceProcess(tmp_path / "data", **limits) as service:
        counts = await switch_under_load(service, service.admin(), models, 50)
        assert len(counts) == 2
        failed = httpx.post(
            f"{service.url}/model", json={"provider": "echo", "model": "no-such"}, headers=service.login(), timeout=60
        )
        assert failed.status_code == 404
        assert predict(service.url, service.login()).status_code == 200


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not MODEL, reason="APRENDIZ_TEST_MODEL names no GGUF file")
async def test_fifty_switches_of_a_real_model(tmp_path: Path) -> None:
    models_dir = tmp_path / "data" / "models"
    for name in ("one", "two"):
        (models_dir / name).mkdir(parents=True)
        (models_dir / name / f"{name}.gguf").symlink_to(MODEL)
    models = [{"provider": "llamacpp", "model": f"{name}"} for name in ("one", "two")]
    limits = {"APRENDIZ_RATE_LIMITS__ENABLED": "false", "APRENDIZ_MODEL__CONTEXT_TOKENS": "512"}
    with ServiceProcess(tmp_path / "data", **limits) as service:
        await switch_under_load(service, service.admin(), models, 50)


@pytest.mark.model
@pytest.mark.skipif(not MODEL, reason="APRENDIZ_TEST_MODEL names no GGUF file")
async def test_a_killed_engine_is_a_clear_error_and_comes_back(tmp_path: Path) -> None:
    from tests.acceptance.models import install

    data = tmp_path / "data"
    name = install(MODEL, data)
    with ServiceProcess(data, provider="llamacpp", model=name) as service:
        headers = service.admin()
        seen = threading.Event()
        kinds: list[str] = []

        async def stream() -> dict[str, Any]:
            body = {"prompt": "Tell a very long story about a river.", "stream": True, "max_tokens": 400}
            async with httpx.AsyncClient(timeout=60) as client:
                async with client.stream("POST", f"{service.url}/predict", json=body, headers=headers) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("event: "):
                            kinds.append(line.removeprefix("event: "))
                            seen.set()
                        elif line.startswith("data: ") and kinds[-1] == "problem":
                            return dict(json.loads(line.removeprefix("data: ")))
            raise AssertionError(f"no problem event came: {kinds[-3:]}")

        task = asyncio.create_task(stream())
        while not seen.is_set():
            await asyncio.sleep(0.02)
        for pid in service.engines():
            os.kill(pid, signal.SIGKILL)
        problem = await task
        assert problem["status"] == 503
        assert "engine" in problem["detail"].lower()
        for _ in range(200):
            again = predict(service.url, headers, max_tokens=4)
            if again.status_code == 200:
                break
            assert again.status_code == 503, again.text
            assert "retry-after" in again.headers
            await asyncio.sleep(0.1)
        assert again.status_code == 200
        assert httpx.get(f"{service.url}/health/ready").status_code == 200

"""Two models switched under load: no failed answer, no mixed answer; an engine killed in mid-stream comes back (B32)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.harness import ServiceProcess, install, predict


async def read_stream(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], **body: Any
) -> tuple[list[str], dict[str, Any]]:
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


async def switch_under_load(
    service: ServiceProcess, headers: dict[str, str], models: list[dict[str, str]], switches: int
) -> dict[str, int]:
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


NO_LIMITS = {"APRENDIZ_RATE_LIMITS__ENABLED": "false"}


def test_twenty_switches_under_twenty_streams(tmp_path: Path) -> None:
    models = [{"provider": "echo", "model": "upper"}, {"provider": "echo", "model": "echo"}]
    with ServiceProcess(tmp_path / "data", environ=NO_LIMITS) as service:
        headers = service.admin()
        counts = asyncio.run(switch_under_load(service, headers, models, 20))
        assert len(counts) == 2
        failed = httpx.post(f"{service.url}/model", json={"provider": "echo", "model": "no-such"}, headers=headers, timeout=60)
        assert failed.status_code == 404
        assert predict(service.url, headers).status_code == 200


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_fifty_switches_of_a_real_model(tmp_path: Path, model_file: Path) -> None:
    data = tmp_path / "data"
    models = [{"provider": "llamacpp", "model": install(model_file, data, "one")}]
    models.append({"provider": "llamacpp", "model": install(model_file, data, "two", variant=True)})
    environ = {**NO_LIMITS, "APRENDIZ_MODEL__CONTEXT_TOKENS": "512"}
    with ServiceProcess(data, provider="llamacpp", model="one", environ=environ) as service:
        counts = asyncio.run(switch_under_load(service, service.admin(), models, 50))
        print(
            f"50 switches of a real model under 20 streams: answers per version {sorted(counts.values())}, none failed or mixed"
        )
        assert len(counts) == 2
        assert len(service.engines()) <= 2


@pytest.mark.model
def test_a_killed_engine_is_a_clear_error_and_comes_back(tmp_path: Path, model_file: Path) -> None:
    data = tmp_path / "data"
    with ServiceProcess(data, provider="llamacpp", model=install(model_file, data, "one")) as service:
        headers = service.admin()
        body = {"prompt": "Tell a very long story about a river.", "stream": True, "max_tokens": 400}
        kind, problem = "", {}
        with httpx.stream("POST", f"{service.url}/predict", json=body, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    if not kind:
                        for pid in service.engines():
                            os.kill(pid, signal.SIGKILL)
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: ") and kind == "problem":
                    problem = json.loads(line.removeprefix("data: "))
        assert problem["status"] == 503, kind
        assert "engine" in problem["detail"].lower()
        for _ in range(300):
            again = predict(service.url, headers, max_tokens=4)
            if again.status_code == 200:
                break
            assert again.status_code == 503, again.text
            assert "retry-after" in again.headers
            time.sleep(0.1)
        assert again.status_code == 200
        assert httpx.get(f"{service.url}/health/ready").status_code == 200

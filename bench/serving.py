"""Tokens per second and time to first token: the engine alone against the whole service, side by side in one run.

    .venv/bin/python -m bench.serving --model FILE.gguf [--rounds 3] [--tokens 64] [--streams 1 8]

The engine is the same worker with the same settings both times. "engine": a bare HTTP client on its socket. "service": POST
/predict with a bearer token, streamed, with login, limits, metrics, JSON log and stored prediction on. Rounds alternate;
medians are printed as a table. CPU is user plus system time of the service process per token, without the engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from app.core.settings import Model, Providers
from app.core.types import ModelSpec
from app.providers.base import ProviderContext
from app.providers.llamacpp import LlamaCppModel, LlamaCppProvider
from tests.acceptance.harness import ServiceProcess, install

PROMPTS = [
    f"Write a long story about a {thing} in {place}." for thing in ("river", "clock", "dog", "ship") for place in "ABCDEFGH"
]

HEAD = "| streams | engine tok/s | service tok/s | ratio | first token ms: engine | service | service CPU µs/token |"

Ask = Callable[[str], Awaitable[tuple[int, float]]]
"""Asks one question to its end; returns the answer's tokens and the seconds to its first piece."""


async def over_http(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, float]:
    begun, first, tokens = time.monotonic(), 0.0, 0
    async with session.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            if not first and (b'"text"' in line or b'"content":"' in line):
                first = time.monotonic() - begun
            if b"completion_tokens" in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    return tokens, first


async def load(ask: Ask, streams: int) -> tuple[float, float]:
    """Tokens per second over all streams, and the median time to the first token in milliseconds."""
    begun = time.monotonic()
    results = await asyncio.gather(*(ask(PROMPTS[number]) for number in range(streams)))
    seconds = time.monotonic() - begun
    return sum(tokens for tokens, _ in results) / seconds, statistics.median(first for _, first in results) * 1000


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(arguments: argparse.Namespace, service: ServiceProcess, headers: dict[str, str], work: Path) -> None:
    context = ProviderContext(Model(), Providers(), work, work, lambda name: Path(name))
    engine = await LlamaCppProvider(context).open(ModelSpec("llamacpp", arguments.model), on_state=lambda state: None)
    assert isinstance(engine, LlamaCppModel)
    wire = engine._engine.client()
    question = {"max_tokens": arguments.tokens, "temperature": 0.0, "stream": True}
    system = {
        "role": "system",
        "content": "You are Aprendiz, a helpful assistant. Give clear, correct and short answers in plain words.",
    }
    async with aiohttp.ClientSession(headers=headers) as outside:

        async def alone(prompt: str) -> tuple[int, float]:
            body = {
                **question,
                "messages": [system, {"role": "user", "content": prompt}],
                "stream_options": {"include_usage": True},
            }
            return await over_http(wire._session, "http://engine/v1/chat/completions", body)

        async def whole(prompt: str) -> tuple[int, float]:
            return await over_http(outside, f"{service.url}/predict", {**question, "prompt": prompt})

        print("| streams | engine tok/s | service tok/s | ratio | first token ms: engine | service | service CPU µs/token |")
        print("|---|---|---|---|---|---|---|")
        for streams in arguments.streams:
            await asyncio.gather(load(alone, 1), load(whole, 1))  # warm both
            bare, full, cpu = [], [], []
            for _ in range(arguments.rounds):
                bare.append(await load(alone, streams))
                before = cpu_seconds(service.pid)
                full.append(await load(whole, streams))
                cpu.append((cpu_seconds(service.pid) - before) / (streams * arguments.tokens) * 1e6)
            speed = [statistics.median(each[0] for each in runs) for runs in (bare, full)]
            first = [statistics.median(each[1] for each in runs) for runs in (bare, full)]
            row = [
                streams,
                *(f"{each:.1f}" for each in speed),
                f"{speed[1] / speed[0]:.2f}",
                *(f"{each:.0f}" for each in first),
            ]
            print("| " + " | ".join(str(each) for each in [*row, f"{statistics.median(cpu):.0f}"]) + " |", flush=True)
    await engine.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        name = install(Path(arguments.model), work / "data", "bench")
        environ = {"APRENDIZ_RATE_LIMITS__ENABLED": "true", **{k: v for k, v in os.environ.items() if "OMP" in k}}
        with ServiceProcess(work / "data", provider="llamacpp", model=name, environ=environ) as service:
            asyncio.run(measure(arguments, service, service.admin(), work))


if __name__ == "__main__":
    main()

"""What a gateway costs: Aprendiz beside LiteLLM, Portkey and ferrogw, on the same machine in the same run.

    .venv/bin/python -m bench.gateway [--proxies aprendiz litellm portkey] [--seconds 5] [--rounds 3] [--folder DIR]

Each proxy has core 0 to itself; upstream and load generator (both compiled from the C files beside this one) share core 1.
Rounds go through all proxies in turn; medians are printed. "ns": whole answers; "st": streams of 64 pieces, back to back;
"paced": 64 streams of 64 pieces, 10 ms apart, where "piece" is how long a piece was on its way from upstream to client.
Rivals that are not there are installed into the folder first, with --install.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.gateway.proxies import ALL, NOTES, Proxy
from tests.acceptance.harness import free_port

HERE = Path(__file__).parent
PROXY_CORE, LOAD_CORE = 0, 1
PIECES, PACE_US = 64, 10_000
SCENARIOS = {
    "ns, 1 connection": (False, 1, 0),
    "ns, 64 connections": (False, 64, 0),
    "st, 64 connections": (True, 64, 0),
    "paced, 64 connections": (True, 64, PACE_US),
}


def build(folder: Path) -> None:
    for name in ("upstream", "load"):
        subprocess.run(["cc", "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")], check=True)


@contextmanager
def upstream(folder: Path, pace_us: int) -> Iterator[int]:
    port = free_port()
    command = ["taskset", "-c", str(LOAD_CORE), str(folder / "upstream"), str(port), str(PIECES), str(pace_us)]
    process = subprocess.Popen(command)
    try:
        for _ in range(100):
            try:
                httpx.post(f"http://127.0.0.1:{port}/", json={})
                break
            except httpx.TransportError:
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def load(folder: Path, proxy: Proxy, *, stream: bool, connections: int, seconds: float) -> dict[str, Any]:
    file = folder / "request.txt"
    file.write_bytes(proxy.request(stream=stream))
    command = [
        "taskset",
        "-c",
        str(LOAD_CORE),
        str(folder / "load"),
        str(proxy.port),
        str(connections),
        str(seconds),
        str(file),
    ]
    before = proxy.cpu_s()
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    sys.stderr.write(output.stderr)
    result: dict[str, Any] = json.loads(output.stdout)
    result["cpu_us"] = (proxy.cpu_s() - before) / max(result["requests"], 1) * 1e6
    result["rate"] = result["requests"] / result["seconds"]
    return result


def measure(folder: Path, name: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One round of one proxy: every scenario, and what it took to start and to stay."""
    results: dict[str, dict[str, Any]] = {}
    for pace in (0, PACE_US):
        with upstream(folder, pace) as port:
            proxy = ALL[name](folder / "work", port, PROXY_CORE)
            proxy.start()
            try:
                idle = proxy.memory_mib()
                load(folder, proxy, stream=False, connections=8, seconds=min(2, arguments.seconds))
                for scenario, (stream, connections, wanted) in SCENARIOS.items():
                    if wanted == pace:
                        results[scenario] = load(
                            folder, proxy, stream=stream, connections=connections, seconds=arguments.seconds
                        )
                if pace == 0:
                    results["process"] = {"start_s": proxy.start_s, "idle_mib": idle, "loaded_mib": proxy.memory_mib()}
            finally:
                proxy.stop()
    return results


def median(rounds: list[dict[str, dict[str, Any]]], scenario: str, field: str) -> float:
    return statistics.median(each[scenario][field] for each in rounds)


def report(found: dict[str, list[dict[str, dict[str, Any]]]]) -> None:
    direct = {name: rounds for name, rounds in found.items() if name == "direct"}.get("direct")
    base = median(direct, "ns, 1 connection", "p50_us") if direct else 0.0
    print(
        "| proxy | ns req/s | CPU µs/req | added p50 / p99 µs, 1 connection | p50 / p99 ms, 64 | st streams/s "
        "| CPU µs/stream | "
        "paced: CPU µs/stream | piece p50 / p99 µs | memory idle / loaded MiB | start s | failed |"
    )
    print("|---" * 12 + "|")
    for name, rounds in found.items():
        one, many, st, paced = SCENARIOS
        failed = sum(each[scenario]["failed"] for each in rounds for scenario in SCENARIOS)
        print(
            f"| {name} | {median(rounds, many, 'rate'):,.0f} | {median(rounds, many, 'cpu_us'):.0f} "
            f"| {median(rounds, one, 'p50_us') - base:.0f} / {median(rounds, one, 'p99_us') - base:.0f} "
            f"| {median(rounds, many, 'p50_us') / 1000:.1f} / {median(rounds, many, 'p99_us') / 1000:.1f} "
            f"| {median(rounds, st, 'rate'):,.0f} | {median(rounds, st, 'cpu_us'):.0f} | {median(rounds, paced, 'cpu_us'):.0f} "
            f"| {median(rounds, paced, 'piece_p50_us'):.0f} / {median(rounds, paced, 'piece_p99_us'):.0f} "
            f"| {median(rounds, 'process', 'idle_mib'):.0f} / {median(rounds, 'process', 'loaded_mib'):.0f} "
            f"| {median(rounds, 'process', 'start_s'):.1f} | {failed} |"
        )
    print()
    for name in found:
        print(f"{name}: {NOTES[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", nargs="+", default=list(ALL), choices=list(ALL))
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where rivals are installed; a temporary one unless told")
    parser.add_argument("--install", action="store_true", help="install the rivals that are not there")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        parser.error("this needs two cores: one for the proxy, one for upstream and load")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        build(folder)
        names = []
        for name in arguments.proxies:
            proxy = ALL[name](folder / "work", 0, PROXY_CORE)
            if not proxy.installed() and arguments.install:
                proxy.install()
            if proxy.installed():
                names.append(name)
            else:
                sys.stderr.write(f"{name} is not installed in {folder}; --install fetches it\n")
        found: dict[str, list[dict[str, dict[str, Any]]]] = {name: [] for name in names}
        for number in range(arguments.rounds):
            for name in names:
                sys.stderr.write(f"round {number + 1}: {name}\n")
                found[name].append(measure(folder, name, arguments))
        report(found)


if __name__ == "__main__":
    main()

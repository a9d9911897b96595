"""The stage of B18: the service as a process before servers that fail, what each fault must come to, and who checks it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.doors import DOORS, Client, Door, Outcome, call
from tests.acceptance.fault_server import FaultServer
from tests.acceptance.faults import SECRET, TEXT, Kind, truly_whole
from tests.acceptance.harness import ServiceProcess, free_port

DEADLINE_S = 2.0
QUICK_S = 0.5
GRACE_S = 1.0
WHOLE_BY_EVENTS = 400
"""Asked for so many tokens, a patient upstream is read as a stream even if the caller is not (see `whole_is_safe`)."""
KINDS: tuple[Kind, ...] = ("openai", "claude")


@dataclass
class Scene:
    """The service, the servers behind it, and what a caller needs."""

    service: ServiceProcess
    faults: FaultServer
    headers: dict[str, str]
    admin: dict[str, str]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def client(self) -> Client:
        return Client(self.service.url, self.headers)

    def name(self, fault: str) -> str:
        """A model that no other test has asked for."""
        return f"{fault}--{next(self.numbers)}"

    def metrics(self) -> str:
        with self.service.client(self.admin) as client:
            return client.get("/metrics").raise_for_status().text

    def value(self, name: str, **labels: str) -> float:
        """The sum of all series of a metric that have these labels."""
        total = 0.0
        for line in self.metrics().splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.service.pid}/fd"))

    def half_closed(self) -> list[str]:
        """Sockets of the service whose other side has gone: nobody has closed them."""
        inodes = set()
        for entry in Path(f"/proc/{self.service.pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(entry).removeprefix("socket:[").rstrip("]"))
            except OSError:
                continue
        lines = Path(f"/proc/{self.service.pid}/net/tcp").read_text().splitlines()[1:]
        close_wait = "08"
        return [line for line in lines if line.split()[3] == close_wait and line.split()[9] in inodes]

    def settle(self) -> None:
        """Nothing of what was asked is left: no request at an upstream, none running, none waiting, no half-closed socket."""
        gauges = ("aprendiz_running_predictions", "aprendiz_queue_length")

        def left() -> dict[str, object]:
            found: dict[str, object] = {name: value for name in gauges if (value := self.value(name))}
            if (flying := self.value("aprendiz_http_requests_in_flight")) > 1:  # the question itself is one
                found["in flight"] = flying
            if self.faults.playing:
                found["at the upstream"] = [each.model for each in tuple(self.faults.playing)]
            if gone := self.half_closed():
                found["half closed"] = gone
            return found

        until = time.monotonic() + 5
        while (found := left()) and time.monotonic() < until:
            time.sleep(0.05)
        assert not found


def upstreams(ports: dict[str, int]) -> dict[str, dict[str, object]]:
    """Patient ones, whose silence the deadline ends; quick ones; and those that no request reaches."""
    base = {"models": ["*"], "connect_timeout_s": 1.0, "max_concurrency": 1000}
    made: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        here = base | {"kind": kind, "base_url": f"http://127.0.0.1:{ports['main']}"}
        made[kind + "-far"] = here | {"read_timeout_s": 10}
        made[kind + "-quick"] = here | {"read_timeout_s": QUICK_S}
        quick = here | {"read_timeout_s": QUICK_S, "connect_timeout_s": QUICK_S}
        for name in ("dead", "deaf", "eager"):
            made[f"{kind}-{name}"] = quick | {"base_url": f"http://127.0.0.1:{ports[name]}"}
        for name in ("trusted", "expired", "stranger", "elsewhere"):
            if name in ports:
                made[f"{kind}-{name}"] = here | {"base_url": f"https://localhost:{ports[name]}"}
    return made


def certificates(folder: Path) -> dict[str, ssl.SSLContext]:
    """TLS servers by what is wrong with them; the service trusts all of their certificates but the stranger's."""
    made: dict[str, ssl.SSLContext] = {}
    trusted = b""
    for name, host, days in (
        ("trusted", "localhost", "2"),
        ("expired", "localhost", "-1"),
        ("stranger", "localhost", "2"),
        ("elsewhere", "other.example", "2"),
    ):
        key, crt = folder / f"{name}.key", folder / f"{name}.crt"
        new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
        about = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
        request = subprocess.run([*new, *about], check=True, capture_output=True).stdout
        sign = ["openssl", "x509", "-req", "-signkey", str(key), "-days", days, "-copy_extensions", "copy", "-out", str(crt)]
        subprocess.run(sign, input=request, check=True, capture_output=True)
        made[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made[name].load_cert_chain(crt, key)
        trusted += b"" if name == "stranger" else crt.read_bytes()
    (folder / "trusted.pem").write_bytes(trusted)
    return made


@contextmanager
def standing(folder: Path) -> Iterator[Scene]:
    """The whole scene, for as long as the ``with`` block; ``folder`` is empty."""
    contexts = certificates(folder) if shutil.which("openssl") else {}
    with FaultServer() as faults, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        ports = {
            "main": faults.listen(),
            "eager": faults.listen(eager=True),
            "dead": free_port(),
            "deaf": deaf.getsockname()[1],
        }
        fillers = [socket.socket() for _ in range(4)]  # its backlog is full: whoever connects now hears nothing
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(deaf.getsockname())
        ports |= {name: faults.listen(context) for name, context in contexts.items()}
        routes = {
            f"{kind}-pair-{number}": {
                "targets": [{"model": f"{kind}-far/500--{kind}{number}"}, {"model": f"{kind}-far/good--{kind}{number}"}],
                "retries": 0,
            }
            for kind in KINDS
            for number in range(len(DOORS))
        }
        environ = {
            "APRENDIZ_PROVIDERS__UPSTREAMS": json.dumps(upstreams(ports)),
            "APRENDIZ_ROUTING__MODELS": json.dumps(routes),
            "APRENDIZ_MODEL__ANSWER_TIMEOUT_S": str(DEADLINE_S),
            "APRENDIZ_MODEL__QUEUE": "5000",
            "APRENDIZ_MODEL__QUEUE_PER_USER": "5000",
            "APRENDIZ_RATE_LIMITS__ENABLED": "false",
            "SSL_CERT_FILE": str(folder / "trusted.pem"),
        }
        with ServiceProcess(folder / "data", environ=environ) as service:
            admin = service.admin()
            with service.client(admin) as client:
                made = client.post("/auth/keys", json={"name": "b18", "scopes": ["predict"]})
            yield Scene(service, faults, {"Authorization": f"Bearer {made.json()['key']}"}, admin)
        for each in fillers:
            each.close()


# -- what each fault must come to -------------------------------------------------------------------------------------

ERROR = frozenset({"upstream-error"})
UNREACHABLE = frozenset({"upstream-unreachable"})
TIMEOUT = frozenset({"upstream-timeout"})
BUSY = frozenset({"upstream-busy", "upstream-cooling-down"})
REFUSED = frozenset({"upstream-refused"})
GOOD: frozenset[str] = frozenset()
ANY = ERROR | UNREACHABLE | TIMEOUT
"""What comes first is the server's choice, or that of the moment."""
EXPECTED: dict[str, frozenset[str]] = {
    **dict.fromkeys(("good", "slow", "gentle", "continue", "more", "stale", "stale-reset"), GOOD),
    **dict.fromkeys(("latency", "hang", "hang-in-head", "hang-after-head", "hang-within", "drip", "drip-within"), TIMEOUT),
    **dict.fromkeys(("endless-head", "endless-line", "endless-continue"), ANY),
    **dict.fromkeys(("endless-body", "endless-comments", "huge-event"), ANY),
    **dict.fromkeys(("closed", "reset"), UNREACHABLE),
    **dict.fromkeys(("cut", "cut-reset", "no-end", "no-end-bare", "empty", "no-content"), ERROR | UNREACHABLE),
    **dict.fromkeys(("garbage", "garbage-within", "two-lengths", "two-framings", "upgrade"), ERROR),
    **dict.fromkeys(("wrong-type", "no-json", "wrong-shape", "deep", "gzip", "status-999"), ERROR),
    **dict.fromkeys(("error-with-200", "error-within", "redirect", "moved", "500", "502", "slow-500"), ERROR),
    **dict.fromkeys(("busy", "busy-1", "busy-60", "busy-date", "busy-nonsense", "overloaded"), BUSY),
    **dict.fromkeys(("no-money", "bad-key", "forbidden"), REFUSED),
    "unknown": frozenset({"unknown-model", "model-not-found"}),
    "bad-request": frozenset({"invalid-request"}),
    "504": TIMEOUT,
    "hang-in-error": ANY,
}
ONCE = {"unknown", "bad-request", "no-money", "bad-key", "forbidden", "busy-60", "busy-date", "overloaded"}
"""Faults for which asking the same server again would be wrong."""
SHOWS_TEXT = {"hang-within", "drip-within", "endless-body"}


def complaints(scene: Scene, outcome: Outcome, expected: frozenset[str]) -> list[str]:
    """What is wrong with the end of a call; nothing, if all is as it must be."""
    found = list(outcome.complaints)
    model = outcome.model.partition("/")[2]
    fault = model.split("--")[0]
    asked = scene.faults.requests[model]
    if SECRET in outcome.raw:
        found.append("the upstream's own words are shown")
    if not expected:
        if outcome.text.lower() != TEXT or not outcome.ended or outcome.failed:
            found.append("this was a good answer")
    elif outcome.ended or not outcome.failed:
        found.append("a fault ended as a normal end")
    elif outcome.slug is not None and outcome.slug not in expected:
        found.append(f"expected {sorted(expected)}")
    if not TEXT.startswith(outcome.text.lower()) and fault != "endless-body":
        found.append("text that nobody sent")
    if outcome.text.startswith("all") and asked > 1:
        found.append(f"asked {asked} times although pieces of the first answer had been shown")
    if asked > (1 if fault in ONCE else 2):
        found.append(f"asked {asked} times")
    if outcome.stream and fault in SHOWS_TEXT and not outcome.text:
        found.append("the beginning was not shown")
    return [f"{each} -- {outcome}" for each in found]


Asking = tuple[Door, str, bool, frozenset[str], int]
"""Door, model, stream, what is expected, max_tokens."""


async def sweep(scene: Scene, calls: Sequence[Asking], *, at_once: int) -> list[str]:
    """All of ``calls``; what was wrong."""
    gate = asyncio.Semaphore(at_once)

    async def one(door: Door, model: str, stream: bool, expected: frozenset[str], max_tokens: int) -> Outcome:
        async with gate:
            return await call(scene.client, door, model, stream=stream, max_tokens=max_tokens)

    async with lag(scene) as late:
        outcomes = await asyncio.gather(*(one(*each) for each in calls))
    for outcome in outcomes:
        if outcome.seconds > DEADLINE_S + GRACE_S + max(late):
            outcome.complaints.append(f"the deadline was not kept, though nothing else was later than {max(late):.2f} s")
    return [each for outcome, call in zip(outcomes, calls, strict=True) for each in complaints(scene, outcome, call[3])]


@asynccontextmanager
async def lag(scene: Scene) -> AsyncIterator[list[float]]:
    """How long the simplest question took, again and again: what the machine takes, not the upstreams."""
    late: list[float] = []
    client = Client(scene.service.url)

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await client.ask("/health/live")
            late.append(time.monotonic() - begun)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()


def every_fault(scene: Scene, times: int, chance: random.Random) -> list[Asking]:
    """Each fault of each kind of upstream, ``times`` times, each time through another door, whole and streamed in turns."""
    ways = list(itertools.product(DOORS, (True, False)))
    calls: list[Asking] = []
    for number, (fault, kind) in enumerate(itertools.product(EXPECTED, KINDS)):
        for turn in range(times):
            door, stream = ways[(3 * number + 5 * turn) % len(ways)]
            upstream = f"{kind}-{'quick' if fault in ('hang', 'hang-within') and chance.random() < 0.5 else 'far'}"
            middle = f"--{chance.randrange(1000)}" if fault.startswith("cut") else ""
            tokens = WHOLE_BY_EVENTS if chance.random() < 0.3 else 16
            expected = EXPECTED[fault]
            if middle and truly_whole(kind, stream=stream or tokens > 16, thousandths=int(middle[2:])):
                expected = GOOD
            calls.append((door, f"{upstream}/{scene.name(fault + middle)}", stream, expected, tokens))
    chance.shuffle(calls)
    return calls

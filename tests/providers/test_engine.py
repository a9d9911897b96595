"""Supervision with real processes: start, crash, wedge, restart, end; nothing leaks, nothing hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import EngineUnavailable, ModelLoadFailed, UnknownModel
from app.core.types import EngineState, Event, Finished, TextDelta
from app.providers.engine import Engine, Timings

FAST = Timings(
    health_interval_s=0.1,
    health_timeout_s=0.3,
    wedged_after_s=0.5,
    backoff_first_s=0.05,
    backoff_max_s=0.1,
    max_failures=3,
    retry_failed_s=60,
    term_grace_s=1,
)
BODY = {"messages": [], "stream": True}


class States(list[EngineState]):
    """Hears the changes of state."""

    def __call__(self, state: EngineState) -> None:
        self.append(state)


def build(
    runtime_dir: Path, states: Callable[[EngineState], None], *, load_timeout_s: float = 30, memory_mb: int = 0, **config: Any
) -> Engine:
    return Engine(
        "tests.providers.fake_worker",
        config,
        label="test/fake",
        runtime_dir=runtime_dir,
        load_timeout_s=load_timeout_s,
        memory_mb=memory_mb,
        on_state=states,
        timings=FAST,
    )


@asynccontextmanager
async def running(runtime_dir: Path, states: States | None = None, **config: Any) -> AsyncIterator[Engine]:
    engine = build(runtime_dir, states if states is not None else States(), **config)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.aclose()


async def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    """Waits for what other processes do; bounded."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def group(pid: int) -> list[int]:
    """Living members of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == pid and fields[0] != "Z":
                found.append(int(folder.name))
    return found


async def drain(stream: AsyncIterator[Event]) -> None:
    async with asyncio.timeout(20):
        async for _ in stream:
            pass


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def entries(folder: Path) -> list[str]:
    return os.listdir(folder)


async def text_of(engine: Engine) -> str:
    return "".join([e.text async for e in engine.client().stream_chat(BODY) if isinstance(e, TextDelta)])


async def test_starts_answers_and_ends_without_a_trace(runtime_dir: Path) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    states = States()
    async with running(runtime_dir, states) as engine:
        events = [event async for event in engine.client().stream_chat(BODY)]
        assert isinstance(events[-1], Finished)
        status = engine.status()
        assert status.state is EngineState.READY
        assert status.pid is not None and alive(status.pid)
        assert status.rss_bytes is not None and status.rss_bytes > 1_000_000
        assert status.device == "cpu"
        assert os.getpgid(status.pid) == status.pid, "a group of its own: Ctrl-C in the terminal must not reach it"
    assert states == [EngineState.STARTING, EngineState.READY, EngineState.STOPPED]
    assert not alive(status.pid)
    assert entries(runtime_dir) == []
    await engine.aclose()
    with pytest.raises(EngineUnavailable):
        engine.client()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= fds)


async def test_worker_sees_no_secret(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s" * 40)
    monkeypatch.setenv("APRENDIZ_SECURITY__SECRET_KEY", "s" * 40)
    monkeypatch.setenv("HF_TOKEN", "t")
    async with running(runtime_dir) as engine:
        names = set(engine.facts["environment"])
        assert not names & {"SECRET_KEY", "APRENDIZ_SECURITY__SECRET_KEY", "HF_TOKEN"}
        command = read(f"/proc/{engine.status().pid}/cmdline")
        environment = read(f"/proc/{engine.status().pid}/environ")
        assert b"key" not in command.lower()
        assert b"s" * 40 not in environment


async def test_kill_in_mid_stream_gives_an_error_and_a_new_worker(runtime_dir: Path) -> None:
    states = States()
    async with running(runtime_dir, states, count=500) as engine:
        pid = engine.status().pid
        assert pid is not None
        stream = engine.client().stream_chat(BODY)
        await anext(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="stopped while it answered"):
            await drain(stream)
        await until(lambda: engine.status().state is EngineState.READY and engine.status().pid != pid)
        assert engine.status().restarts == 1
        assert engine.status().error is None
        stream = engine.client().stream_chat(BODY)
        assert isinstance(await anext(stream), TextDelta)
        await stream.aclose()
    assert states[2:4] == [EngineState.RESTARTING, EngineState.READY]


async def test_wedged_worker_is_killed_and_its_streams_end(runtime_dir: Path) -> None:
    async with running(runtime_dir, count=500) as engine:
        pid = engine.status().pid
        assert pid is not None
        stream = engine.client().stream_chat(BODY)
        await anext(stream)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable):
            await drain(stream)
        await until(lambda: engine.status().state is EngineState.READY and engine.status().pid != pid)
        assert not alive(pid)


async def test_endless_failures_end_in_failed_and_a_demand_tries_again(runtime_dir: Path, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    async with running(runtime_dir, mode="flaky", flag=str(flag), count=3) as engine:
        flag.touch()
        pid = engine.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.status().state is not EngineState.READY)
        with pytest.raises(EngineUnavailable) as caught:
            engine.client()
        assert caught.value.retry_after is not None and caught.value.retry_after > 0
        await until(lambda: engine.status().state is EngineState.FAILED)
        error = engine.status().error
        assert error is not None and "times in a row" in error and "/secret" not in error
        assert any("third-party trace" in line for line in engine.status().log)
        flag.unlink()
        await asyncio.sleep(2 * FAST.backoff_max_s)
        assert engine.status().state is EngineState.FAILED, "nobody asked: it waits"
        with pytest.raises(EngineUnavailable, match="keeps failing"):
            engine.client()
        await until(lambda: engine.status().state is EngineState.READY)
        assert await text_of(engine) == "w0 w1 w2 "


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"mode": "die"}, ModelLoadFailed, "exit status 1"),
        ({"mode": "crash"}, ModelLoadFailed, "SIGSEGV"),
        ({"mode": "fail"}, ModelLoadFailed, "made of cheese"),
        ({"mode": "fail", "unknown": True}, UnknownModel, "made of cheese"),
        ({"mode": "hang", "load_timeout_s": 1.0}, ModelLoadFailed, "not ready after 1 s"),
    ],
)
async def test_failed_load_is_said_and_leaves_nothing(
    runtime_dir: Path, config: dict[str, Any], error: type[Exception], words: str
) -> None:
    states = States()
    engine = build(runtime_dir, states, **config)
    with pytest.raises(error, match=words):
        await engine.start()
    assert states == [EngineState.STARTING, EngineState.FAILED]
    assert engine.status().pid is None
    assert entries(runtime_dir) == []
    await engine.aclose()


async def test_start_that_is_cancelled_leaves_no_process(runtime_dir: Path) -> None:
    engine = build(runtime_dir, States(), mode="hang")
    task = asyncio.create_task(engine.start())
    await until(lambda: engine.status().pid is not None)
    pid = engine.status().pid
    assert pid is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)


async def test_what_the_worker_started_ends_with_it(runtime_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(runtime_dir, grandchild=True) as engine:
        pid = engine.status().pid
        assert pid is not None
        await until(lambda: len(group(pid)) == 2)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.status().restarts == 1 and engine.status().state is EngineState.READY)
        assert group(pid) == []
        assert any("SIGKILL" in str(record.__dict__.get("data")) for record in caplog.records), (
            "noticed by its end, not by silence"
        )
        second = engine.status().pid
        assert second is not None
    assert group(second) == []


async def test_log_is_bounded_and_stdout_of_libraries_is_no_report(runtime_dir: Path) -> None:
    async with running(runtime_dir, mode="noise") as engine:
        await until(lambda: any("line 999" in line for line in engine.status().log))
        assert len(engine.status().log) <= 200
        assert max(map(len, engine.status().log)) <= 500
        assert await text_of(engine)


async def test_long_runtime_dir_falls_back_to_a_short_one(runtime_dir: Path) -> None:
    deep = runtime_dir / ("d" * 90)
    deep.mkdir()
    async with running(deep) as engine:
        assert await text_of(engine)
        assert entries(deep) == []


async def test_loopback_port_where_there_are_no_unix_sockets(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.providers.engine._UNIX_SOCKETS", False)
    async with running(runtime_dir) as engine:
        assert engine.facts["port"] > 0
        assert await text_of(engine)


async def test_memory_limit_and_no_core_dumps(runtime_dir: Path) -> None:
    async with running(runtime_dir, memory_mb=2048) as engine:
        limits = read(f"/proc/{engine.status().pid}/limits").decode().splitlines()
        space = next(line.split() for line in limits if line.startswith("Max address space"))
        core = next(line.split() for line in limits if line.startswith("Max core file size"))
        assert space[3] == str(2048 << 20)
        assert core[4:6] == ["0", "0"]


_PARENT = """
import asyncio, sys
from pathlib import Path
from app.providers.engine import Engine

async def main():
    engine = Engine("tests.providers.fake_worker", {"grandchild": True}, label="x", runtime_dir=Path(sys.argv[1]),
                    load_timeout_s=30, on_state=lambda state: None)
    await engine.start()
    print(engine.status().pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_worker_dies_with_its_parent(runtime_dir: Path, number: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, str(runtime_dir), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    try:
        assert alive(pid)
        parent.send_signal(number)
        await until(lambda: not alive(pid))
    finally:
        if parent.returncode is None:
            parent.kill()
        await parent.wait()
        for left in group(pid):
            os.kill(left, signal.SIGKILL)

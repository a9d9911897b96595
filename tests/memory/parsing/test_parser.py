"""The child that reads a document: its limits, its end, and what it says to the service."""

# ruff: noqa: ASYNC240  # files of a few bytes

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import pytest

import app
from app.core.errors import InvalidRequest, PayloadTooLarge, Unavailable, UnsupportedMediaType
from app.memory.parsing import parser as parser_module
from app.memory.parsing.frames import Code, refusal
from app.memory.parsing.parser import Parser
from tests.memory.parsing import hostile


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
async def parser(runtime: Path) -> AsyncIterator[Parser]:
    yield Parser(runtime)
    assert not list(runtime.glob("*")), "a child's folder is left"


async def children() -> list[str]:
    """Command lines of our living children that read documents."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = re.search(r"\nPPid:\s*(\d+)", (folder / "status").read_text())
        except OSError:
            continue
        if parser_module._MODULE in line and parent and int(parent.group(1)) == os.getpid():
            found.append(line)
    return found


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Another program in the child's place."""
    package = tmp_path / "stand_in_package"
    package.mkdir()
    (package / "stand_in.py").write_text(
        f"import sys, json, os, struct, time\nsys.path.insert(0, {str(Path(app.__path__[0]).parent)!r})\n"
        "config = json.loads(sys.stdin.readline())\n"
        "def send(x):\n    b = json.dumps(x).encode()\n"
        "    sys.stdout.buffer.write(struct.pack('>I', len(b)) + b); sys.stdout.flush()\n" + code
    )
    monkeypatch.setattr(parser_module, "_MODULE", "stand_in")
    monkeypatch.setattr(app, "__path__", [str(package / "app")])


async def test_a_document_comes_whole_and_in_order_with_progress(parser: Parser, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("".join(f"Paragraph number {number} of the text.\n\n" for number in range(30_000)))
    heard: list[float] = []
    parsed = await parser.parse(file, name="x.txt", on_progress=heard.append)
    assert parsed.format == "txt" and not parsed.notes
    numbers = re.findall(r"number (\d+) of", "\n".join(block.text for block in parsed.blocks))
    assert [int(number) for number in numbers] == list(range(30_000))
    assert parsed.characters == sum(len(block.text) for block in parsed.blocks)
    assert all(0 <= each <= 1 for each in heard) and heard == sorted(heard)
    assert not await children()


async def test_the_child_has_no_secret_no_place_and_limits(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "not for children")
    file = tmp_path / "x.txt"
    file.write_text("x")
    stand_in(
        monkeypatch,
        tmp_path,
        "from app.memory.workers.parse_limits import die_with_parent, limit\nimport resource, threading\n"
        "die_with_parent(config['parent_pid']); limit(memory_mb=config['memory_mb'], cpu_s=config['cpu_s'])\n"
        "try:\n    os.write(os.open('written', os.O_CREAT | os.O_WRONLY), b'x'); wrote = 'yes'\n"
        "except OSError:\n    wrote = 'no'\n"
        "os.path.exists('written') and os.unlink('written')\n"
        "facts = [sorted(os.environ), os.listdir('.'), wrote, resource.getrlimit(resource.RLIMIT_AS)[0] >> 20,\n"
        " resource.getrlimit(resource.RLIMIT_CPU)[0], os.getsid(0) == os.getpid(),\n"
        " os.read(config['fd'], 9).decode(),\n"
        " sorted(int(n) for n in os.listdir('/proc/self/fd') if int(n) not in (0, 1, 2, config['fd']))]\n"
        "send({'type': 'blocks', 'blocks': [[repr(facts), 'text', 0, {}, '']]})\n"
        "send({'type': 'done', 'format': 'txt', 'notes': []})\n",
    )
    parsed = await parser.parse(file, name="x.txt")
    environment, files, wrote, memory, cpu, own_session, content, descriptors = eval(parsed.blocks[0].text)
    assert set(environment) <= {"LANG", "PYTHONPATH", "MALLOC_ARENA_MAX", "LC_CTYPE"}
    assert not files and wrote == "no" and own_session and content == "x"
    assert memory == parser_module.MEMORY_MB and cpu == parser_module.CPU_S
    assert len(descriptors) <= 2  # the listing itself, and the file that could not be written


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), 9)", "too long"),
        ("os.kill(os.getpid(), 11)", "damaged"),
        ("sys.exit(1)", "damaged"),
        ("sys.stdout.buffer.write(b'\\xff\\xff\\xff\\xff'); sys.stdout.flush(); time.sleep(60)", "damaged"),
        ("sys.stdout.buffer.write(struct.pack('>I', 4) + b'nope'); sys.stdout.flush(); time.sleep(60)", "damaged"),
        ("send({'type': 'refused', 'code': 'call me at http://evil.example'}); time.sleep(60)", "damaged"),
        ("send({'type': 'done', 'format': 'exe', 'notes': []}); time.sleep(60)", "damaged"),
        ("send({'type': 'done', 'format': 'txt', 'notes': []}); time.sleep(60)", "no text"),
        ("send({'type': 'blocks', 'blocks': [['x' * 16001, 'text', 0, {}, '']]}); time.sleep(60)", "damaged"),
        ("while True: send({'type': 'blocks', 'blocks': [['x' * 16000, 'text', 0, {}, '']] * 10})", "million characters"),
        ("while True: send({'type': 'blocks', 'blocks': [['x', 'text', 0, {}, '']] * 256})", "parts"),
    ],
)
async def test_whatever_the_child_does_the_owner_hears_our_words(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    file = tmp_path / "x.txt"
    file.write_text("x")
    stand_in(monkeypatch, tmp_path, code + "\n")
    with pytest.raises(InvalidRequest, match=words) as caught:
        await parser.parse(file, name="x.txt")
    assert "evil" not in caught.value.detail and str(tmp_path) not in caught.value.detail


async def test_one_that_hangs_is_ended(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.txt"
    file.write_text("x")
    stand_in(monkeypatch, tmp_path, "os.fork() and None\ntime.sleep(600)\n")
    with pytest.raises(InvalidRequest, match="too long"):
        await Parser(runtime, wall_s=0.5).parse(file, name="x.txt")
    assert not list(runtime.glob("*")) and not await children()


async def test_cancelling_ends_the_child_and_leaves_nothing(parser: Parser, runtime: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    file.write_bytes(b"<html>" + b"<p>x</b>" * 1_000_000)
    before = set(os.listdir("/proc/self/fd"))
    heard = asyncio.Event()
    task = asyncio.create_task(parser.parse(file, name="x.html", on_progress=lambda done: heard.set()))
    await asyncio.wait_for(heard.wait(), 15)
    assert len(await children()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert not await children() and not list(runtime.glob("*"))
    assert set(os.listdir("/proc/self/fd")) <= before | {str(max(map(int, before)) + 1)}


async def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    file.write_bytes(b"<html>" + b"<p>x</b>" * 1_000_000)
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom app.memory.parsing.parser import Parser\n"
        f"asyncio.run(Parser(Path({str(tmp_path / 'run')!r})).parse(Path({str(file)!r}), name='x.html',"
        " on_progress=lambda done: print('reads', flush=True)))"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    assert b"reads" in await asyncio.wait_for(parent.stdout.readline(), 15)
    children_file = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    child = int(children_file.read_text().split()[0])
    parent.send_signal(signal.SIGKILL)
    await parent.communicate()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "\nState:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        await asyncio.sleep(0.05)
    pytest.fail("the child lives on")


async def test_a_link_or_an_absent_file_is_not_opened(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("link", "absent"):
        with pytest.raises(Unavailable) as caught:
            await parser.parse(tmp_path / name, name="x.txt")
        assert str(tmp_path) not in caught.value.detail


async def test_many_at_once(parser: Parser, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    parsed = await asyncio.gather(*(parser.parse(tmp_path / f"{number}.txt", name="x.txt") for number in range(6)))
    assert [each.blocks[0].text for each in parsed] == [f"text {number}" for number in range(6)]


_WORDS = {refusal(code).detail for code in get_args(Code)}


async def judge(parser: Parser, file: Path, name: str) -> str:
    """What became of a document: read, or refused in our own words. Anything else fails the test."""
    try:
        parsed = await parser.parse(file, name=name)
    except (InvalidRequest, PayloadTooLarge, UnsupportedMediaType) as error:
        return "refused" if error.detail in _WORDS else error.detail
    assert parsed.characters and parsed.blocks
    assert "root:" not in "".join(block.text for block in parsed.blocks)
    return "read"


@pytest.mark.parametrize("case", hostile.QUICK)
async def test_a_hostile_document_is_read_or_refused(parser: Parser, tmp_path: Path, case: str) -> None:
    name, write = hostile.corpus()[case]
    write(tmp_path / "bomb")
    assert await judge(parser, tmp_path / "bomb", name) in ("read", "refused")


async def test_damaged_documents_are_read_or_refused(parser: Parser, tmp_path: Path) -> None:
    await _fuzz(parser, tmp_path, count=3, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", [case for case in hostile.corpus() if case not in hostile.QUICK])
async def test_a_huge_document_is_read_or_refused_in_time(parser: Parser, tmp_path: Path, case: str) -> None:
    name, write = hostile.corpus()[case]
    write(tmp_path / "bomb")
    async with asyncio.timeout(20):
        assert await judge(parser, tmp_path / "bomb", name) in ("read", "refused")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_many_damaged_documents_are_read_or_refused(parser: Parser, tmp_path: Path) -> None:
    await _fuzz(parser, tmp_path, count=50, seed=11)


async def _fuzz(parser: Parser, tmp_path: Path, *, count: int, seed: int) -> None:
    two = asyncio.Semaphore(2)

    async def one(number: int, name: str, data: bytes) -> str:
        async with two:
            file = tmp_path / f"{number}"
            file.write_bytes(data)
            return await judge(parser, file, name)

    outcomes = await asyncio.gather(*(one(number, *case) for number, case in enumerate(hostile.mutated(count, seed))))
    assert {"read", "refused"} >= set(outcomes) and outcomes.count("read") > count

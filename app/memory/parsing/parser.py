"""A file to blocks of text, in a child process that is started for it, limited, and gone before the answer.

The service process never parses a byte of a document: it hands an open file to `app.memory.workers.parse_worker` and reads
typed frames. The child has no secret in its environment, an empty folder for its place, and limits of memory, processor time,
files and time; it is killed with its whole group when it is done, too slow, not wanted any more, or when this process dies. It
is not a sandbox against a hole in Python itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

import app
from app.core.errors import InvalidRequest, Unavailable
from app.memory.parsing.blocks import MOST_BLOCKS, MOST_CHARACTERS, Block, Parsed
from app.memory.parsing.frames import LENGTH, MOST_FRAME_BYTES, Blocks, Done, Frame, Progress, Refused, refusal

WALL_S: Final = 19.5
CPU_S: Final = 18
"""Four times what a PDF of 500 full pages takes. Processor time is what a document may cost; the wall bounds what waits."""
MEMORY_MB: Final = 512
_MODULE: Final = "app.memory.workers.parse_worker"
_MOST_NAME: Final = 1024

logger = logging.getLogger(__name__)


class Parser:
    """Parses documents, each in a child process of its own. Safe to use from several tasks.

    Args:
        runtime_dir: a folder of ours; each child gets an empty one in it, removed afterwards.
        wall_s: longest time for one document.
    """

    def __init__(self, runtime_dir: Path, *, wall_s: float = WALL_S) -> None:
        self._runtime_dir = runtime_dir
        self._wall_s = wall_s
        self._decoder: msgspec.json.Decoder[Frame] = msgspec.json.Decoder(Frame)

    async def parse(self, file: Path, *, name: str, on_progress: Callable[[float], None] | None = None) -> Parsed:
        """The text of ``file``. ``name``: as the client called it; only its ending counts, and only between formats of text.

        ``on_progress`` hears 0 to 1, in the event loop.

        Raises:
            InvalidRequest: (also PayloadTooLarge, UnsupportedMediaType) it cannot be read; in words for its owner.
            Unavailable: the system starts no process, or the file that we stored cannot be opened.
        """
        folder, source = await asyncio.to_thread(self._open, file)
        process: asyncio.subprocess.Process | None = None
        try:
            async with asyncio.timeout(self._wall_s):
                process = await _start(folder, source)
                return await self._read(process, source, name, on_progress or _ignore)
        except TimeoutError:
            raise refusal("slow") from None
        finally:
            os.close(source)
            if process is not None:
                await _end(process)
            shutil.rmtree(folder, ignore_errors=True)

    def _open(self, file: Path) -> tuple[Path, int]:
        try:
            source = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Unavailable("The stored document cannot be opened; try again later.") from error
        try:
            self._runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(prefix="parse-", dir=self._runtime_dir)), source
        except OSError as error:
            os.close(source)
            raise Unavailable("There is no room to read documents; try again later.") from error

    async def _read(
        self, process: asyncio.subprocess.Process, source: int, name: str, on_progress: Callable[[float], None]
    ) -> Parsed:
        config = {"parent_pid": os.getpid(), "fd": source, "name": name[-_MOST_NAME:], "cpu_s": CPU_S, "memory_mb": MEMORY_MB}
        await _feed(process, json.dumps(config).encode() + b"\n")
        blocks: list[Block] = []
        characters = 0
        while (frame := await self._frame(process)) is not None:
            if isinstance(frame, Progress):
                on_progress(frame.done)
            elif isinstance(frame, Blocks):
                fresh = [each.block() for each in frame.blocks]
                characters += sum(len(each.text) + len(each.header) for each in fresh)
                blocks.extend(fresh)
                _check(len(blocks), characters)
            elif isinstance(frame, Refused):
                raise refusal(frame.code)
            else:
                return _parsed(frame, blocks, characters)
        raise await _why_it_died(process)

    async def _frame(self, process: asyncio.subprocess.Process) -> Frame | None:
        """The next frame; None: there will be none. Raises InvalidRequest for one that is none."""
        stdout = _piped(process.stdout)
        try:
            (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
            if length > MOST_FRAME_BYTES:
                raise refusal("damaged")
            return self._decoder.decode(await stdout.readexactly(length))
        except asyncio.IncompleteReadError:
            return None
        except msgspec.MsgspecError as error:
            raise refusal("damaged") from error


def _check(blocks: int, characters: int) -> None:
    if blocks > MOST_BLOCKS:
        raise refusal("parts")
    if characters > MOST_CHARACTERS:
        raise refusal("text")


def _parsed(frame: Done, blocks: list[Block], characters: int) -> Parsed:
    if not characters:
        raise refusal("scan" if any(note.code == "pages_without_text" for note in frame.notes) else "empty")
    return Parsed(frame.format, tuple(blocks), characters, tuple(note.words() for note in frame.notes))


async def _start(folder: Path, source: int) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-s",
            "-B",
            "-m",
            _MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what libraries print of a document is nobody's business
            cwd=folder,
            env={"PYTHONPATH": str(Path(app.__path__[0]).parent), "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
            pass_fds=(source,),
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable("The system refused to start a process that reads the document; try again later.") from error


async def _feed(process: asyncio.subprocess.Process, line: bytes) -> None:
    """Sends the configuration. stdin stays open: its end tells the child that we are gone."""
    stdin = process.stdin
    if stdin is None:
        raise RuntimeError("the child was started without stdin")
    stdin.write(line)
    with contextlib.suppress(ConnectionError):  # it died at once; the end of its output tells
        await stdin.drain()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills the child with all that it may have started, and reaps it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    # What is left in the pipe has to be read, for `wait` waits for its end; it is little, and nobody writes any more.
    while await _piped(process.stdout).read(1 << 16):
        pass
    await process.wait()


async def _why_it_died(process: asyncio.subprocess.Process) -> InvalidRequest:
    status = await process.wait()
    if status in (-signal.SIGXCPU, -signal.SIGKILL):  # its processor time is up; the second where the first was not enough
        return refusal("slow")
    logger.warning("a child that read a document ended without a word", extra={"data": {"status": status}})
    return refusal("damaged")


def _piped(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    if stream is None:
        raise RuntimeError("the child was started without a pipe")
    return stream


def _ignore(done: float) -> None:
    """For who does not ask how far it is."""

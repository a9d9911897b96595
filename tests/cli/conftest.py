"""The real command line in a process of its own, against a data directory of its own."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.cli.main import main
from app.core.settings import Settings
from app.db.database import Database, open_database

ROOT = Path(__file__).parents[2]

T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Cli:
    """Runs ``aprendiz ARGS`` in ``folder``; ``environ`` is all the environment there is.

    Calling it runs the command in this process, which spares a second of imports each time; `process` starts a real one.
    """

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def environment(self, **extra: str) -> dict[str, str]:
        base = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        return base | {"APRENDIZ_DATA_DIR": str(self.data_dir)} | self.environ | extra

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0, **extra: str) -> Done:
        out, err = io.StringIO(), io.StringIO()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            for name in set(os.environ) - set(self.environment()):
                patch.delenv(name)
            for name, value in self.environment(**extra).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["aprendiz", *arguments])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            try:
                main()
                found = 0
            except SystemExit as leaving:
                found = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)
        return self._checked(Done(found, out.getvalue(), err.getvalue()), arguments, code)

    def process(self, *arguments: str, stdin: str = "", code: int = 0, **extra: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli.main", *arguments],
            cwd=self.folder,
            env=self.environment(**extra),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return self._checked(Done(done.returncode, done.stdout, done.stderr), arguments, code)

    def _checked(self, done: Done, arguments: tuple[str, ...], code: int) -> Done:
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def database(self, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
        """Runs ``work`` on the command line's database."""

        async def opened() -> T:
            self.data_dir.mkdir(exist_ok=True)
            database = open_database(Settings(data_dir=self.data_dir))
            await database.open()
            try:
                return await work(database)
            finally:
                await database.aclose()

        return asyncio.run(opened())


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)

"""The checks of ``aprendiz doctor``: each looks at one thing and says what it found and what to do. None changes anything.

No check prints a secret, so the report can be pasted into an issue. A check that meets an error of its own is a failed check,
never a missing line.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from app.core.config import Config
from app.core.errors import AprendizError
from app.core.settings import Settings

State = Literal["ok", "warn", "fail"]

_MIN_FREE = 1 << 30
_LOW_FREE = 5 << 30
_MIN_MEMORY = 1 << 30
_MIN_FILES = 1024
_BACKUP_DAYS = 7
_EARLIEST = datetime(2026, 11, 1, tzinfo=UTC)
"""This program did not exist before: a clock that says so is wrong."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``advice``: what to do, where the state is not ok."""

    name: str
    state: State
    found: str
    advice: str = ""


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """Runs one check; its own failure becomes a finding."""
    try:
        return check()
    except AprendizError as error:
        return Check(name, "fail", error.detail)
    except OSError as error:
        return Check(name, "fail", f"{type(error).__name__}: {error.strerror}")


def local_checks(config: Config) -> Iterator[Check]:
    """What can be seen from this process alone: program, machine, settings, files."""
    settings = config.settings
    yield _program()
    yield _python()
    yield _platform()
    yield _settings(config)
    yield guarded("secret key", lambda: _secret_key(config))
    yield guarded("data directory", lambda: _data_dir(settings.data_dir))
    yield guarded("disk", lambda: _disk(settings.data_dir))
    yield guarded("memory", _memory)
    yield guarded("open files", _open_files)
    yield _clock()
    yield _extras()
    yield guarded("embedder", lambda: _embedder(settings))
    yield from _exposure(settings)


def _program() -> Check:
    return Check("aprendiz", "ok", importlib.metadata.version("aprendiz"))


def _python() -> Check:
    version = platform.python_version()
    return Check("python", "ok", f"{platform.python_implementation()} {version}")


def _platform() -> Check:
    return Check("platform", "ok", f"{platform.platform(terse=True)}, {platform.machine()}, {os.cpu_count()} cores")


def _settings(config: Config) -> Check:
    origins = sorted({origin for origin in config.origins.values() if origin != "default"})
    changed = len([origin for origin in config.origins.values() if origin != "default"])
    found = f"{changed} set by {', '.join(origins)}" if changed else "all at their defaults"
    return Check("settings", "ok", found)


def _secret_key(config: Config) -> Check:
    secret = config.settings.security.secret_key
    if secret is not None:
        where = config.origins.get("security.secret_key", "default")
        distinct = len(set(secret.get_secret_value()))
        if distinct < 16:
            return Check("secret key", "fail", f"from {where}, easy to guess", "Set SECRET_KEY to 32 random bytes or more.")
        return Check("secret key", "ok", f"from {where}")
    path = config.settings.data_dir / "secret_key"
    if not path.exists():
        return Check("secret key", "ok", "none yet; made at the first start")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check(
            "secret key", "fail", f"the file has mode {mode:04o}", "chmod 600 the file secret_key in the data directory."
        )
    return Check("secret key", "ok", "in the data directory, mode 0600")


def _data_dir(path: Path) -> Check:
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if os.access(parent, os.W_OK):
            return Check("data directory", "ok", f"{path}; made at the first start")
        return Check(
            "data directory", "fail", f"{path} cannot be made", "Set APRENDIZ_DATA_DIR to a folder that can be written."
        )
    if not os.access(path, os.W_OK | os.X_OK):
        return Check("data directory", "fail", f"{path} is not writable", "Give the service's user the right to write there.")
    if stat.S_IMODE(path.stat().st_mode) & 0o007:
        return Check("data directory", "warn", f"{path} is open to every user of this machine", "chmod 700 the data directory.")
    return Check("data directory", "ok", str(path))


def _disk(path: Path) -> Check:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{gigabytes(free)} free"
    if free < _MIN_FREE:
        return Check("disk", "fail", found, "Free some space: below 1 GB the database and downloads fail soon.")
    return Check("disk", "warn" if free < _LOW_FREE else "ok", found, "" if free >= _LOW_FREE else "Models need several GB.")


def _memory() -> Check:
    available = _available_memory()
    if available is None:
        return Check("memory", "ok", "not known on this platform")
    found = f"{gigabytes(available)} available"
    advice = "Use a smaller model or free memory." if available < _MIN_MEMORY else ""
    return Check("memory", "warn" if advice else "ok", found, advice)


def _available_memory() -> int | None:
    """Bytes that can still be used: the machine's, or what the control group leaves."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    fields = dict(line.split(":", 1) for line in info.read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        available = min(available, int(text) - int(used.read_text(encoding="ascii")))
    return available


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    best = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if best < _MIN_FILES:
        return Check(
            "open files", "warn", f"limit {soft}, at most {best}", "Raise it (ulimit -n 65536; LimitNOFILE= in systemd)."
        )
    return Check("open files", "ok", f"limit {soft}, the service raises it as needed (at most {best})")


def _clock() -> Check:
    now = datetime.now(UTC)
    found = f"{now:%Y-%m-%d %H:%M:%S} UTC, local zone {time.tzname[0]}"
    if now < _EARLIEST:
        return Check("clock", "fail", found, "The clock is wrong: tokens expire at odd times. Set it, and keep it with NTP.")
    return Check("clock", "ok", found)


def _extras() -> Check:
    """Which optional parts are installed; found by name, not imported: importing torch takes seconds."""
    parts = {
        "hf": "transformers",
        "train": "trl",
        "memory": "onnxruntime",
        "chroma": "chromadb",
        "postgres": "psycopg",
        "redis": "redis",
    }
    present = [extra for extra, module in parts.items() if importlib.util.find_spec(module) is not None]
    if "hf" in present and importlib.util.find_spec("torch") is None:
        return Check(
            "extras", "warn", ", ".join(present), "transformers is here but torch is not: install requirements/torch.txt."
        )
    torch = f"; torch {importlib.metadata.version('torch')}" if importlib.util.find_spec("torch") is not None else ""
    return Check("extras", "ok", (", ".join(present) or "none") + torch)


def _embedder(settings: Settings) -> Check:
    """Whether documents and facts can be searched by meaning: the model that makes vectors, if it is one that lies here."""
    from app.models.local import list_models

    provider, _, model = settings.memory.embedder.partition("/")
    if not provider:
        return Check("embedder", "ok", "none is configured; searches go by words alone")
    if provider != "onnx":
        return Check("embedder", "ok", settings.memory.embedder)
    if any(importlib.util.find_spec(package) is None for package in ("onnxruntime", "tokenizers", "onnx")):
        return Check("embedder", "warn", "the extra memory is not installed", "pip install 'aprendiz[memory]'")
    if Path(model).expanduser().is_dir() or any(item.name == model for item in list_models(settings.data_dir / "models")):
        return Check("embedder", "ok", f"{settings.memory.embedder} is here")
    return Check("embedder", "warn", f"{settings.memory.embedder} is not here", f"aprendiz models pull {model}")


def _exposure(settings: Settings) -> Iterator[Check]:
    server = settings.server
    if server.host in ("127.0.0.1", "::1", "localhost"):
        return
    if not server.public_url.startswith("https://"):
        advice = "Put TLS in front and set server.public_url to its https:// address."
        yield Check("exposure", "warn", f"listens on {server.host} without an https:// public_url", advice)
    if "*" in server.trusted_hosts:
        yield Check("exposure", "warn", "server.trusted_hosts accepts every host name", "Name the hosts that people use.")
    if not settings.security.secure_cookies:
        yield Check("exposure", "warn", "security.secure_cookies is off", "Switch it on and use TLS.")


def database_checks(settings: Settings) -> Iterator[Check]:
    """Reachable, at which schema, whole (SQLite's quick check), and how old the newest backup is."""
    from app.db import migrate
    from app.db.location import locate

    location = locate(settings)
    kind = "PostgreSQL" if location.path is None else "SQLite"
    if location.path is not None and not location.path.exists():
        yield Check("database", "ok", "SQLite, none yet; made at the first start")
        return
    revision = migrate.current(location.url.render_as_string(hide_password=False))
    found = f"{kind}, schema {revision or 'none'}"
    if revision == migrate.head():
        yield Check("database", "ok", found)
    else:
        yield Check(
            "database", "warn", f"{found}, this version has {migrate.head()}", "aprendiz db upgrade, or start the service."
        )
    if location.path is not None:
        yield guarded("integrity", lambda: _integrity(location.sqlite_path))
        yield guarded("backup", lambda: _backup(location.backups))


def _integrity(path: Path) -> Check:
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return Check("integrity", "fail", f"{type(error).__name__}: {error}", "Restore a backup: aprendiz db restore.")
    if verdict != "ok":
        return Check("integrity", "fail", "SQLite finds the file damaged", "Restore a backup: aprendiz db restore.")
    return Check("integrity", "ok", f"quick check passed, {gigabytes(path.stat().st_size)}")


def _backup(folder: Path) -> Check:
    files = sorted(folder.glob("*.db"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    if not files:
        return Check("backup", "warn", "none", "Make one: aprendiz db backup. Best daily, to another disk.")
    age = (time.time() - files[-1].stat().st_mtime) / 86_400
    found = f"{len(files)}, the newest {age:.0f} day(s) old"
    advice = "Make one: aprendiz db backup." if age > _BACKUP_DAYS else ""
    return Check("backup", "warn" if advice else "ok", found, advice)


def port_is_taken(settings: Settings) -> bool:
    """Whether something listens where the service would."""
    try:
        with socket.create_connection((settings.server.local_host, settings.server.port), timeout=2):
            return True
    except OSError:
        return False


def gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"

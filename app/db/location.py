"""Where the database is: reads ``database.url`` and the data directory, and refuses what we cannot speak to. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.core.errors import ConfigurationError
from app.core.settings import Settings

_FILE = "aprendiz.db"


@dataclass(frozen=True, slots=True)
class Location:
    """``path``: the SQLite file, or None for PostgreSQL. ``backups``: folder for automatic and named backups."""

    url: URL
    path: Path | None
    backups: Path

    @property
    def sqlite_path(self) -> Path:
        """The SQLite file. Raises ConfigurationError for PostgreSQL."""
        if self.path is None:
            raise ConfigurationError("This works with SQLite only; the database here is PostgreSQL.")
        return self.path


def locate(settings: Settings) -> Location:
    """Where ``settings`` puts the database.

    Raises:
        ConfigurationError: neither ``postgresql://`` nor ``sqlite:///``. The text never repeats the URL (passwords).
    """
    backups = settings.data_dir / "backups"
    secret = settings.database.url
    if secret is None:
        return _sqlite(settings.data_dir / _FILE, backups)
    return locate_url(secret.get_secret_value(), backups=backups)


def locate_url(text: str, *, backups: Path) -> Location:
    """The same for a URL; see `locate`."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError("DATABASE_URL is not a URL of the form postgresql://user:password@host:5432/name.") from None
    scheme = url.drivername.partition("+")[0]
    if scheme in ("postgresql", "postgres"):
        return Location(url.set(drivername="postgresql+psycopg"), None, backups)
    if scheme == "sqlite" and url.database and url.database != ":memory:":
        return _sqlite(Path(url.database).absolute(), backups)
    raise ConfigurationError(
        "DATABASE_URL must begin with postgresql:// (or sqlite:/// and a file). Leave it out for SQLite in the data directory."
    )


def _sqlite(path: Path, backups: Path) -> Location:
    return Location(URL.create("sqlite", database=str(path)), path, backups)

"""From a row to a record and back, for the repositories. Field names of records are column names; nothing is guessed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from sqlalchemy import Row, RowMapping, Table, insert
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict
from app.db.database import Database

R = TypeVar("R")


async def add(database: Database, table: Table, record: Any) -> None:
    """Inserts a record. Raises Conflict where it exists, or where the account that it belongs to was deleted meanwhile."""
    query = insert(table).values(values_of(record))
    try:
        await database.write(lambda connection: connection.execute(query))
    except IntegrityError as error:
        raise Conflict("It exists already, or the account that it belongs to was deleted meanwhile.") from error


def values_of(record: Any, **changes: Any) -> dict[str, Any]:
    """A record dataclass as column values; ``changes`` replace or add."""
    names, values = _reader_of(cast("Hashable", type(record)))
    row = dict(zip(names, values(record), strict=True))
    return row | changes if changes else row


@functools.lru_cache(maxsize=64)
def _reader_of(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))
    return names, operator.attrgetter(*names)


def record_of(kind: type[R], row: Row[Any] | None) -> R | None:
    """The record of a row, or None for none."""
    return None if row is None else make(kind, row._mapping)


def records_of(kind: type[R], rows: Any) -> list[R]:
    """The records of a result, in its order."""
    return [make(kind, row._mapping) for row in rows]


def make(kind: type[R], values: Mapping[str, Any] | RowMapping) -> R:
    """A record from columns that may hold more than its fields. JSON arrays become tuples."""
    taken = {field.name: values[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()})

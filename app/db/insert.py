"""Rows into a table by one prepared statement: what SQLAlchemy works out anew for every row is worked out once a table.

For the rows that every call writes. It knows no transaction and handles no error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Table


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts ``rows``, all of which have the same columns. Raises the driver's errors, as SQLAlchemy wraps them."""
    sql, columns = _statement(table, tuple(rows[0]), connection.dialect)
    values = [tuple([row[name] if bind is None else bind(row[name]) for name, bind in columns]) for row in rows]
    connection.exec_driver_sql(sql, values)


@functools.lru_cache(maxsize=64)
def _statement(
    table: Table, names: tuple[str, ...], dialect: Dialect
) -> tuple[str, list[tuple[str, Callable[[Any], Any] | None]]]:
    """The statement, and its parameters in order: each column with what turns its value into the driver's."""
    compiled = table.insert().compile(dialect=dialect, column_keys=list(names))
    order = [str(name) for name in getattr(compiled, "positiontup", None) or names]
    return str(compiled), [(name, table.c[name].type.dialect_impl(dialect).bind_processor(dialect)) for name in order]

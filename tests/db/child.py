"""A process that writes and says what was acknowledged, to be killed or to meet a failing disk.

Run as ``python -m tests.db.child FOLDER serial N`` (one write after the other) or ``... burst N`` (all at once). Prints one
line a write: ``ack ID`` or ``no ERROR ID``, then ``unavailable REASON``, then ``reads ROWS``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from sqlalchemy import func, select

from app.core.errors import StorageUnavailable
from app.core.ids import uuid7
from app.core.settings import Settings
from app.db.database import Database, open_database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.schema import predictions
from tests.db import make


async def _one(database: Database, owner: str) -> str:
    record = make.prediction(owner, id=uuid7(), output="x" * 500)
    try:
        await Predictions(database).add(record)
    except StorageUnavailable as error:
        return f"no {type(error).__name__} {record.id}"
    return f"ack {record.id}"


def _say(line: str) -> None:
    os.write(1, (line + "\n").encode())


async def main(folder: Path, how: str, count: int) -> None:
    """Writes ``count`` predictions of the one account in the database."""
    database = open_database(Settings(data_dir=folder))
    await database.open()
    owner = (folder / "owner").read_text()
    _say("open")
    if how == "serial":
        for _ in range(count):
            _say(await _one(database, owner))
    else:
        for line in await asyncio.gather(*(_one(database, owner) for _ in range(count))):
            _say(line)
        # What follows the acknowledgements in the writer's thread (a checkpoint) shows in the next write.
        _say(await _one(database, owner))
    _say(f"unavailable {database.unavailable()}")
    rows = await database.read(
        lambda connection: connection.execute(select(func.count()).select_from(predictions)).scalar_one()
    )
    _say(f"reads {rows}")
    await database.aclose()


def write_until_killed(folder: str, owner: str, pipe: Pipe) -> None:
    """Four writers that send ``(prediction id, feedback id)`` after each acknowledged pair, for ever."""

    async def writer(database: Database) -> None:
        while True:
            said = make.prediction(owner, id=uuid7())
            await Predictions(database).add(said)
            given = make.feedback(said.id, owner, id=uuid7(), idempotency_key=said.id)
            await Feedback(database).store(given)
            pipe.send_bytes(f"{said.id} {given.id}".encode())

    async def run() -> None:
        database = open_database(Settings(data_dir=Path(folder)))
        await database.open()
        await asyncio.gather(*(writer(database) for _ in range(4)))

    asyncio.run(run())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

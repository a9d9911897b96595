"""What deleting leaves behind, and what an erasure takes beside the account.

What deleted predictions have cost: an id, whose it was, and the money. Who deletes an answer does not get its price back.

Nothing of what was said is kept, after 31 days not even that, and of a deleted account only the money.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Text, cast, delete, func, insert, null, select

from app.core.ids import first_uuid7
from app.db.database import Database
from app.db.schema import PRICED, chunks, conversations, documents, erased_costs, facts, feedback, predictions, snapshot_rows
from app.db.turns import drop_summary

_KEPT_MS: Final = 31 * 86_400_000
"""Longer than the longest window of a budget."""
_PAGE: Final = 200
_EMPTY: Final = {
    "output": "",
    "reasoning": "",
    "tool_calls": [],
    "error": "erased: This answer was made with the words of a person who has been erased since.",
}


def note_costs(connection: Connection, condition: ColumnElement[bool], *, anonymous: bool = False) -> None:
    """Notes the prices of the predictions that are about to be deleted. ``anonymous``: without whose they were."""
    row = predictions.c
    user_id, key_id = (null(), null()) if anonymous else (row.user_id, row.key_id)
    priced = select(row.id, user_id, key_id, row.cost_nanousd).where(PRICED, condition)
    connection.execute(insert(erased_costs).from_select(["id", "user_id", "key_id", "cost_nanousd"], priced))
    oldest = first_uuid7(int(time.time() * 1000) - _KEPT_MS)
    connection.execute(delete(erased_costs).where(erased_costs.c.id < oldest))


def forget_owner(connection: Connection, user_id: str) -> None:
    """Takes an account's name off what it deleted before."""
    connection.execute(erased_costs.update().where(erased_costs.c.user_id == user_id).values(user_id=None, key_id=None))


class Erased:
    """What has to be known of a person, and to go, beside the account: `app.db.users.Users.delete` takes all that is the
    account's own. Here: whose answers others got with this person's words, and the names in the lineage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self, user_id: str) -> dict[str, int]:
        """How many rows of each kind belong to the account."""
        wanted = {
            "predictions": predictions,
            "conversations": conversations,
            "feedback": feedback,
            "documents": documents,
            "chunks": chunks,
            "facts": facts,
        }

        def work(connection: Connection) -> dict[str, int]:
            return {
                name: int(
                    connection.execute(select(func.count()).select_from(table).where(table.c.user_id == user_id)).scalar_one()
                )
                for name, table in wanted.items()
            }

        return await self._database.read(work)

    async def lent(self, user_id: str) -> list[str]:
        """Ids of this person's corrections: those given by the account, and those on its answers."""
        own = select(predictions.c.id).where(predictions.c.user_id == user_id)
        query = select(feedback.c.id).where(
            (feedback.c.user_id == user_id) | feedback.c.prediction_id.in_(own), feedback.c.correction.is_not(None)
        )
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def blank_answers(self, user_id: str, feedback_ids: Collection[str]) -> int:
        """Empties answers that others got while they were shown these corrections, there and where later prompts repeat them.

        Returns how many. Done again, it finds none.
        """
        wanted, after, blanked = frozenset(feedback_ids), "", 0
        while wanted:
            page, after = await self._database.read(lambda connection, after=after: _shown(connection, user_id, after))  # type: ignore[misc]
            for row in page:
                if wanted.intersection(row.input.get("examples", ())) and (row.output or row.reasoning):
                    await self._database.write(lambda connection, row=row: _blank(connection, row))  # type: ignore[misc]
                    blanked += 1
            if not after:
                break
        return blanked

    async def strip_lineage(self, user_id: str) -> int:
        """Takes a person out of the rows of snapshots, once nothing is left of what they were made into. Returns how many."""
        rows = snapshot_rows.c
        query = delete(snapshot_rows).where((rows.user_id == user_id) | (rows.rater == user_id))
        return await self._database.write(lambda connection: connection.execute(query).rowcount)

    async def snapshots_of(self, user_id: str) -> list[str]:
        """Snapshots that hold what this person asked or judged."""
        rows = snapshot_rows.c
        query = select(rows.snapshot_id).where((rows.user_id == user_id) | (rows.rater == user_id)).distinct()
        return await self._database.read(lambda connection: sorted(connection.execute(query).scalars()))


def _shown(connection: Connection, user_id: str, after: str) -> tuple[list[Row[Any]], str]:
    """A page of other people's predictions that were made with examples, and where the next one begins (empty: nowhere)."""
    row = predictions.c
    query = (
        select(row.id, row.user_id, row.input, row.output, row.reasoning)
        .where(row.id > after, row.user_id != user_id, cast(row.input, Text).contains('"examples":['))
        .order_by(row.id)
        .limit(_PAGE)
    )
    page: list[Row[Any]] = [*connection.execute(query)]
    return page, page[-1].id if len(page) == _PAGE else ""


def _blank(connection: Connection, row: Row[Any]) -> None:
    """Empties one answer, the same text where the same user's later prompts repeat it, and a summary that covers it."""
    drop_summary(connection, row.id, row.user_id)
    connection.execute(predictions.update().where(predictions.c.id == row.id).values(_EMPTY))
    if not row.output.strip():
        return
    later = select(predictions.c.id, predictions.c.input).where(predictions.c.user_id == row.user_id, predictions.c.id > row.id)
    for other in connection.execute(later).all():
        messages = other.input.get("messages", ())
        if not any(message.get("content") == row.output for message in messages):
            continue
        emptied = [{**each, "content": ""} if each.get("content") == row.output else each for each in messages]
        changed = {**other.input, "messages": emptied}
        connection.execute(predictions.update().where(predictions.c.id == other.id).values(input=changed))

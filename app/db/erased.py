"""What deleted predictions have cost: an id, whose it was, and the money. Who deletes an answer does not get its price back.

Nothing of what was said is kept, after 31 days not even that, and of a deleted account only the money.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, insert, null, select

from app.core.ids import first_uuid7
from app.db.schema import PRICED, erased_costs, predictions

_KEPT_MS: Final = 31 * 86_400_000
"""Longer than the longest window of a budget."""


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

"""Facts that users stated of themselves: proposed, kept with consent, gone when their owner says so.

Every query carries the owner. A change of what is kept, or of its vectors, changes the generation of the owner's partition in
the same transaction. What an owner did away with leaves for 30 days a hash of its words, so that it is not proposed again: such
a row has no text, is in no list and counts as nothing. What may be recalled is decided in `app.memory.facts`.
"""

from __future__ import annotations

import builtins
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict
from app.core.records import FactRecord, FactState
from app.db.database import Database
from app.db.partitions import FACTS, bump
from app.db.rows import record_of, records_of, values_of
from app.db.schema import facts

MOST_KEPT: Final = 1000
MOST_PROPOSED: Final = 100
PROPOSAL_DAYS: Final = 30
"""How long a proposal waits for an answer, and how long a fact that was done away with is not proposed again."""
_REFUSED: Final = "refused"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Proposed:
    """``facts``: what was new. ``dropped``: how many older proposals made room."""

    facts: tuple[FactRecord, ...]
    dropped: int = 0


def folded(text: str) -> str:
    """What makes two facts the same: their words, without regard to case, accents' form and punctuation."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def hash_of(text: str) -> str:
    """`FactRecord.content_hash`: of the very text, as it is embedded."""
    return hashlib.sha256(text.encode()).hexdigest()


class Facts:
    """The table ``facts``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def propose(self, user_id: str, proposals: Sequence[FactRecord], *, now: datetime) -> Proposed:
        """Stores those that this user neither has, nor was asked about, nor did away with in the last 30 days.

        Raises Conflict where the account was deleted meanwhile.
        """

        def work(connection: Connection) -> Proposed:
            _expire(connection, now, facts.c.user_id == user_id)
            known = {folded(text) for text in connection.execute(select(facts.c.text).where(_of(user_id))).scalars()}
            gone = and_(facts.c.user_id == user_id, facts.c.state == _REFUSED)
            refused = set(connection.execute(select(facts.c.content_hash).where(gone)).scalars())
            new: list[FactRecord] = []
            for each in proposals:
                words = folded(each.text)
                if words and words not in known and _trace(user_id, words) not in refused:
                    known.add(words)
                    new.append(each)
            if new:
                connection.execute(insert(facts), [values_of(each) for each in new])
            return Proposed(tuple(new), _drop_oldest(connection, _of(user_id, "proposed"), MOST_PROPOSED))

        try:
            return await self._database.write(work)
        except IntegrityError as error:
            raise _gone_account() from error

    async def add(self, fact: FactRecord) -> FactRecord:
        """Stores a kept fact; of the same words as another, the other one is kept instead and returned.

        Raises Conflict where the user keeps 1,000 already, or the account was deleted meanwhile.
        """

        def work(connection: Connection) -> FactRecord:
            words = folded(fact.text)
            for row in connection.execute(select(facts).where(_of(fact.user_id)).order_by(facts.c.state)):
                if folded(row.text) == words:
                    return _keep(connection, row.id, fact.user_id, fact.updated_at)
            _check_room(connection, fact.user_id)
            connection.execute(insert(facts).values(values_of(fact)))
            bump(connection, fact.user_id, FACTS)
            return fact

        try:
            return await self._database.write(work)
        except IntegrityError as error:
            raise _gone_account() from error

    async def get(self, fact_id: str, *, user_id: str) -> FactRecord | None:
        """A user's fact, or None: absent and another's are the same."""
        query = select(facts).where(_of(user_id), facts.c.id == fact_id)
        return await self._database.read(lambda connection: record_of(FactRecord, connection.execute(query).one_or_none()))

    async def list(
        self, user_id: str, *, now: datetime, state: FactState | None = None, limit: int = 100, after: str | None = None
    ) -> builtins.list[FactRecord]:
        """A user's facts, newest first; proposals that waited too long are none any more. ``after``: the last id before."""
        fresh = or_(facts.c.state == "kept", facts.c.created_at > now - timedelta(days=PROPOSAL_DAYS))
        query = select(facts).where(_of(user_id, state), fresh).order_by(facts.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(facts.c.id < after)
        return await self._database.read(lambda connection: records_of(FactRecord, connection.execute(query)))

    async def edit(
        self, fact_id: str, *, user_id: str, now: datetime, text: str | None = None, keep: bool = False
    ) -> FactRecord | None:
        """Changes a user's fact and returns it as it is then. ``keep``: the user agrees to have it kept.

        Raises Conflict where the user keeps 1,000 already.
        """

        def work(connection: Connection) -> FactRecord | None:
            mine = and_(_of(user_id), facts.c.id == fact_id)
            row = connection.execute(select(facts).where(mine)).one_or_none()
            if row is None:
                return None
            if text is not None and text != row.text:
                changed = {"text": text, "content_hash": hash_of(text), "space": None, "vector": None, "updated_at": now}
                connection.execute(update(facts).where(mine).values(changed))
                if row.state == "kept":
                    bump(connection, user_id, FACTS)
            if keep:
                return _keep(connection, fact_id, user_id, now)
            return record_of(FactRecord, connection.execute(select(facts).where(mine)).one())

        return await self._database.write(work)

    async def delete(self, fact_id: str, *, user_id: str, now: datetime) -> FactRecord | None:
        """Removes a user's fact and returns what it was."""
        found = await self._remove(facts.c.id == fact_id, user_id, now)
        return found[0] if found else None

    async def clear(self, user_id: str, *, now: datetime) -> builtins.list[FactRecord]:
        """Removes all facts and proposals of a user and returns what they were."""
        return await self._remove(None, user_id, now)

    async def kept(self, user_id: str) -> builtins.list[FactRecord]:
        """All that a user keeps, oldest first, without the vectors."""
        columns = [each for each in facts.c if each.name != "vector"]
        query = select(*columns).where(_of(user_id, "kept")).order_by(facts.c.id).limit(MOST_KEPT)
        return await self._database.read(lambda connection: [FactRecord(**each._mapping) for each in connection.execute(query)])

    async def vectors(self, user_id: str, space: str, ids: Sequence[str]) -> dict[str, bytes]:
        """The vectors of that space of those of these that are kept, by id."""
        query = select(facts.c.id, facts.c.vector).where(_of(user_id, "kept"), facts.c.space == space, facts.c.id.in_(ids))
        return await self._database.read(
            lambda connection: {row.id: row.vector for row in connection.execute(query) if row.vector is not None}
        )

    async def embedded(self, user_id: str, space: str, vectors: Sequence[tuple[FactRecord, bytes]]) -> int:
        """Stores vectors of what is still kept with the same text. Returns how many those were."""

        def work(connection: Connection) -> int:
            count = 0
            for fact, vector in vectors:
                same = and_(_of(user_id, "kept"), facts.c.id == fact.id, facts.c.content_hash == fact.content_hash)
                count += connection.execute(update(facts).where(same).values(space=space, vector=vector)).rowcount
            if count:
                bump(connection, user_id, FACTS)
            return count

        return await self._database.write(work)

    async def recalled(self, ids: Iterable[tuple[str, str]], *, now: datetime) -> None:
        """Notes that these, ``(user, fact)``, were shown to a model."""
        pairs = [*ids]

        def work(connection: Connection) -> None:
            for user_id, fact_id in pairs:
                connection.execute(update(facts).where(_of(user_id), facts.c.id == fact_id).values(recalled_at=now))

        await self._database.write(work)

    async def expire(self, *, now: datetime) -> int:
        """Takes out proposals, and hashes of what was done away with, that are older than 30 days. Returns how many."""
        return await self._database.write(lambda connection: _expire(connection, now))

    async def _remove(self, condition: ColumnElement[bool] | None, user_id: str, now: datetime) -> builtins.list[FactRecord]:
        wanted = _of(user_id) if condition is None else and_(_of(user_id), condition)

        def work(connection: Connection) -> builtins.list[FactRecord]:
            found = records_of(FactRecord, connection.execute(select(facts).where(wanted)))
            for each in found:
                trace = _trace(user_id, folded(each.text))
                nothing = {"prediction_id": None, "recalled_at": None, "space": None, "vector": None}
                blank = {"text": "", "state": _REFUSED, "content_hash": trace, "created_at": now, "updated_at": now, **nothing}
                connection.execute(update(facts).where(facts.c.user_id == user_id, facts.c.id == each.id).values(blank))
            if any(each.state == "kept" for each in found):
                bump(connection, user_id, FACTS)
            _drop_oldest(connection, and_(facts.c.user_id == user_id, facts.c.state == _REFUSED), MOST_KEPT)
            return found

        return await self._database.write(work)


def _of(user_id: str, state: FactState | None = None) -> ColumnElement[bool]:
    wanted = facts.c.state.in_(("proposed", "kept")) if state is None else facts.c.state == state
    return and_(facts.c.user_id == user_id, wanted)


def _trace(user_id: str, words: str) -> str:
    """What is left of a fact that was done away with; other than that of another user's same words."""
    return hashlib.sha256(f"{user_id}\n{words}".encode()).hexdigest()


def _keep(connection: Connection, fact_id: str, user_id: str, now: datetime) -> FactRecord:
    mine = and_(_of(user_id), facts.c.id == fact_id)
    row = connection.execute(select(facts).where(mine)).one()
    if row.state != "kept":
        _check_room(connection, user_id)
        connection.execute(update(facts).where(mine).values(state="kept", updated_at=now))
        bump(connection, user_id, FACTS)
        row = connection.execute(select(facts).where(mine)).one()
    found = record_of(FactRecord, row)
    assert found is not None  # noqa: S101  # it was read above, in this transaction
    return found


def _check_room(connection: Connection, user_id: str) -> None:
    count = connection.execute(select(func.count()).select_from(facts).where(_of(user_id, "kept"))).scalar_one()
    if count >= MOST_KEPT:
        raise Conflict(f"You keep {MOST_KEPT} facts already; delete some first.")


def _drop_oldest(connection: Connection, condition: ColumnElement[bool], most: int) -> int:
    newest = select(facts.c.id).where(condition).order_by(facts.c.created_at.desc(), facts.c.id.desc()).offset(most)
    if connection.dialect.name == "sqlite":
        newest = newest.limit(-1)
    old = [*connection.execute(newest).scalars()]
    if old:
        connection.execute(delete(facts).where(facts.c.id.in_(old)))
    return len(old)


def _expire(connection: Connection, now: datetime, *conditions: ColumnElement[bool]) -> int:
    old = and_(facts.c.state.in_(("proposed", _REFUSED)), facts.c.created_at <= now - timedelta(days=PROPOSAL_DAYS))
    return connection.execute(delete(facts).where(old, *conditions)).rowcount


def _gone_account() -> Conflict:
    return Conflict("The account was deleted meanwhile; nothing was stored.")

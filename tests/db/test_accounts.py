"""Users, invites, sessions and keys, on both databases."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from app.core.errors import Conflict
from app.core.ids import uuid7
from app.core.records import UserRecord
from app.db.conversations import Conversations
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.invites import Invites
from app.db.keys import Keys
from app.db.predictions import Predictions
from app.db.sessions import Sessions
from app.db.users import Users
from tests.db import make
from tests.db.make import LATER, NOW


async def test_a_user_comes_back_as_it_was_stored(database: Database) -> None:
    users = Users(database)
    stored = make.user("Ana María", role="admin", last_login_at=NOW, disabled_at=LATER)
    await users.create(stored)
    assert await users.get(stored.id) == stored
    assert await users.by_name("ANA MARÍA") == stored
    assert await users.get(uuid7()) is None
    assert await users.by_name("nobody") is None


@pytest.mark.parametrize("twin", ["ana", "ANA", "ＡＮＡ", "Ana"])
async def test_names_that_look_the_same_are_the_same(database: Database, twin: str) -> None:
    users = Users(database)
    await users.create(make.user("Ana"))
    with pytest.raises(Conflict) as error:
        await users.create(make.user(twin))
    assert error.value.field == "username"
    assert await users.count() == 1


async def test_folding_reaches_its_fixed_point(database: Database) -> None:
    users = Users(database)
    await users.create(make.user("straße"))
    with pytest.raises(Conflict):
        await users.create(make.user("STRASSE"))
    assert (await users.by_name("Strasse")) is not None


async def test_many_at_once_with_one_name_make_one_user(database: Database) -> None:
    users = Users(database)
    results = await asyncio.gather(*(users.create(make.user("Ana")) for _ in range(30)), return_exceptions=True)
    assert Counter(type(result) for result in results) == {type(None): 1, Conflict: 29}


async def test_one_invite_makes_one_user(database: Database) -> None:
    users, invites = Users(database), Invites(database)
    issued = make.invite("secret", role="admin")
    await invites.create(issued)
    results = await asyncio.gather(*(users.create_with_invite(make.user(), token_hash="secret", now=NOW) for _ in range(100)))
    made = [result for result in results if result is not None]
    assert len(made) == 1
    assert made[0].role == "admin"
    assert await users.list() == made
    assert await invites.list(now=NOW) == []


async def test_an_invite_that_is_expired_or_unknown_makes_nobody(database: Database) -> None:
    users, invites = Users(database), Invites(database)
    await invites.create(make.invite("old", expires_at=NOW))
    assert await users.create_with_invite(make.user(), token_hash="old", now=NOW) is None
    assert await users.create_with_invite(make.user(), token_hash="none", now=NOW) is None
    assert await users.count() == 0


async def test_a_taken_name_leaves_the_invite_good(database: Database) -> None:
    users, invites = Users(database), Invites(database)
    await users.create(make.user("Ana"))
    await invites.create(make.invite("secret"))
    with pytest.raises(Conflict):
        await users.create_with_invite(make.user("ana"), token_hash="secret", now=NOW)
    assert (await users.create_with_invite(make.user("Eva"), token_hash="secret", now=NOW)) is not None


async def test_invites_are_listed_and_withdrawn(database: Database) -> None:
    invites = Invites(database)
    admin = await make.stored_user(database, role="admin")
    first, second, third = (make.invite(role="admin"), make.invite(role="admin", created_by=admin.id), make.invite())
    for each in (first, second, third):
        await invites.create(each)
    assert await invites.list(now=NOW) == [third, second, first]
    await invites.delete_unused_of_role("admin", created_by=None)
    assert await invites.list(now=NOW) == [third, second]
    assert await invites.delete(third.id) is True
    assert await invites.delete(third.id) is False
    assert await invites.list(now=LATER) == []


async def test_users_are_listed_page_by_page_newest_first(database: Database) -> None:
    users = Users(database)
    stored = [await make.stored_user(database) for _ in range(5)]
    expected = sorted(stored, key=lambda each: each.id, reverse=True)
    seen: list[UserRecord] = []
    while page := await users.list(limit=2, after=seen[-1].id if seen else None):
        seen += page
    assert seen == expected


async def test_an_update_changes_only_what_is_given(database: Database) -> None:
    users = Users(database)
    await make.stored_user(database, role="admin")
    stored = await make.stored_user(database)
    assert await users.update(stored.id) == stored
    disabled = await users.update(stored.id, disabled_at=NOW, last_login_at=LATER)
    assert disabled is not None
    assert (disabled.disabled_at, disabled.last_login_at, disabled.role) == (NOW, LATER, "user")
    enabled = await users.update(stored.id, disabled_at=None, role="admin", password_hash="new")
    assert enabled == await users.get(stored.id)
    assert enabled is not None
    assert (enabled.disabled_at, enabled.role, enabled.password_hash, enabled.last_login_at) == (None, "admin", "new", LATER)
    assert await users.update(uuid7(), role="admin") is None
    assert await users.count(role="admin") == 2


async def test_the_last_enabled_admin_stays(database: Database) -> None:
    users = Users(database)
    admin = await make.stored_user(database, role="admin")
    await make.stored_user(database, role="admin", disabled_at=NOW)
    for attempt in (
        users.update(admin.id, role="user"),
        users.update(admin.id, disabled_at=NOW),
        users.delete(admin.id),
    ):
        with pytest.raises(Conflict):
            await attempt
    assert await users.update(admin.id, password_hash="new") is not None


async def test_two_admins_cannot_demote_each_other_at_once(database: Database) -> None:
    users = Users(database)
    for _ in range(10):
        admins = [await make.stored_user(database, role="admin") for _ in range(2)]
        results = await asyncio.gather(*(users.update(admin.id, role="user") for admin in admins), return_exceptions=True)
        assert Counter(type(result) for result in results) == {UserRecord: 1, Conflict: 1}
        left = [admin for admin, result in zip(admins, results, strict=True) if isinstance(result, Conflict)]
        await make.stored_user(database, "stand-in", role="admin")
        assert await users.delete(left[0].id)
        stand_in = await users.by_name("stand-in")
        assert stand_in is not None
        await database.write(lambda connection: connection.exec_driver_sql("DELETE FROM users"))


async def test_deleting_a_user_removes_all_that_is_theirs(database: Database) -> None:
    users, sessions, keys = Users(database), Sessions(database), Keys(database)
    conversations, predictions, feedback = Conversations(database), Predictions(database), Feedback(database)
    gone, stays = await make.stored_user(database), await make.stored_user(database)
    session, key, thread = make.session(gone.id), make.key(gone.id), make.conversation(gone.id)
    await sessions.create(session)
    await keys.create(key)
    await conversations.create(thread)
    theirs = await make.stored_prediction(database, gone.id, conversation_id=thread.id)
    others = await make.stored_prediction(database, stays.id)
    await feedback.store(make.feedback(theirs.id, stays.id))
    await feedback.store(make.feedback(theirs.id, f"token:{theirs.id}", user_id=None))
    await feedback.store(make.feedback(others.id, gone.id))
    kept, _ = await feedback.store(make.feedback(others.id, stays.id))
    await Invites(database).create(make.invite("from-gone", created_by=gone.id))

    assert await users.delete(gone.id) is True
    assert await users.delete(gone.id) is False
    assert await sessions.get(session.id) is None
    assert await keys.by_hash(key.key_hash) is None
    assert await conversations.list(gone.id) == []
    assert await predictions.get(theirs.id) is None
    assert await predictions.get(others.id) == others
    assert await feedback.list(current=False) == [kept]
    assert [each.created_by for each in await Invites(database).list(now=NOW)] == [None]


async def test_sessions_live_and_end(database: Database) -> None:
    sessions = Sessions(database)
    owner, other = await make.stored_user(database), await make.stored_user(database)
    one, two, expired = (
        make.session(owner.id, user_agent="Mozilla/5.0 …"),
        make.session(owner.id),
        make.session(owner.id, expires_at=NOW),
    )
    for each in (one, two, expired):
        await sessions.create(each)
    assert await sessions.get(one.id) == one
    assert await sessions.list(owner.id, now=NOW) == [two, one]
    assert await sessions.revoke(one.id, user_id=other.id, now=NOW) is False
    assert await sessions.revoke(one.id, user_id=owner.id, now=NOW) is True
    assert await sessions.revoke(one.id, now=NOW) is False
    assert await sessions.revoke_user(owner.id, except_id=two.id, now=NOW) == 1
    assert await sessions.list(owner.id, now=NOW) == [two]
    assert await sessions.revoke_user(owner.id, now=NOW) == 1
    await sessions.create(make.session(owner.id, created_at=NOW + timedelta(days=6)))
    assert await sessions.get(one.id) is not None
    await sessions.create(make.session(other.id, created_at=NOW + timedelta(days=8)))
    assert await sessions.get(one.id) is not None  # another's login touches nothing
    await sessions.create(make.session(owner.id, created_at=NOW + timedelta(days=8)))
    assert [await sessions.get(each.id) for each in (one, two, expired)] == [None, None, None]


async def test_rotation_in_its_four_outcomes(database: Database) -> None:
    sessions = Sessions(database)
    owner = await make.stored_user(database)
    live = make.session(owner.id)
    await sessions.create(live)

    async def rotate(presented: str, new: str, seconds: float = 0) -> str:
        when = NOW + timedelta(seconds=seconds)
        return await sessions.rotate(live.id, presented_hash=presented, new_hash=new, now=when, grace_s=10)

    assert await rotate("hash-0", "hash-1") == "rotated"
    assert await rotate("hash-0", "hash-x", 10) == "repeat"
    after = await sessions.get(live.id)
    assert after is not None
    assert (after.refresh_hash, after.previous_refresh_hash, after.rotated_at, after.last_seen_at) == (
        "hash-1",
        "hash-0",
        NOW,
        NOW,
    )
    assert await rotate("hash-1", "hash-2", 11) == "rotated"
    assert await rotate("hash-0", "hash-x", 12) == "reused"
    assert await rotate("hash-2", "hash-x", 12) == "gone"
    ended = await sessions.get(live.id)
    assert ended is not None
    assert ended.revoked_at == NOW + timedelta(seconds=12)
    assert await sessions.rotate(uuid7(), presented_hash="a", new_hash="b", now=NOW, grace_s=1) == "gone"


async def test_the_predecessor_after_the_grace_is_a_reuse(database: Database) -> None:
    sessions = Sessions(database)
    live = make.session((await make.stored_user(database)).id)
    await sessions.create(live)
    await sessions.rotate(live.id, presented_hash="hash-0", new_hash="hash-1", now=NOW, grace_s=10)
    late = NOW + timedelta(seconds=10, microseconds=1)
    assert await sessions.rotate(live.id, presented_hash="hash-0", new_hash="x", now=late, grace_s=10) == "reused"


async def test_an_expired_session_does_not_rotate(database: Database) -> None:
    sessions = Sessions(database)
    live = make.session((await make.stored_user(database)).id)
    await sessions.create(live)
    assert await sessions.rotate(live.id, presented_hash="hash-0", new_hash="x", now=LATER, grace_s=10) == "gone"


async def test_twenty_rotations_at_once_rotate_once(database: Database) -> None:
    sessions = Sessions(database)
    live = make.session((await make.stored_user(database)).id)
    await sessions.create(live)
    outcomes = await asyncio.gather(
        *(sessions.rotate(live.id, presented_hash="hash-0", new_hash=f"new-{n}", now=NOW, grace_s=10) for n in range(20))
    )
    assert Counter(outcomes) == {"rotated": 1, "repeat": 19}
    after = await sessions.get(live.id)
    assert after is not None
    assert after.refresh_hash == f"new-{outcomes.index('rotated')}"


async def test_keys_are_found_listed_touched_and_revoked(database: Database) -> None:
    keys = Keys(database)
    owner, other = await make.stored_user(database), await make.stored_user(database)
    one, two = make.key(owner.id), make.key(owner.id, scopes=(), expires_at=LATER)
    await keys.create(one)
    await keys.create(two)
    assert await keys.by_hash(one.key_hash) == one
    assert await keys.by_hash("unknown") is None
    assert await keys.list(owner.id) == [two, one]
    await keys.touch(one.id, now=LATER)
    assert await keys.revoke(one.id, user_id=other.id, now=NOW) is False
    assert await keys.revoke(one.id, user_id=owner.id, now=NOW) is True
    assert await keys.revoke(one.id, now=NOW) is False
    ended = await keys.by_hash(one.key_hash)
    assert ended is not None
    assert (ended.revoked_at, ended.last_used_at) == (NOW, LATER)


async def test_nothing_is_added_to_an_account_that_is_gone(database: Database) -> None:
    stored = await make.stored_user(database)
    key = make.key(stored.id)
    await Keys(database).create(key)
    for attempt in (
        Keys(database).create(key),
        Keys(database).create(make.key(uuid7())),
        Sessions(database).create(make.session(uuid7())),
        Conversations(database).create(make.conversation(uuid7())),
        Invites(database).create(make.invite(created_by=uuid7())),
    ):
        with pytest.raises(Conflict):
            await attempt

"""``aprendiz users`` and ``aprendiz keys`` on a real database."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from app.core.records import InviteRecord, KeyRecord, UserRecord
from app.db.audit import Audit
from app.db.database import Database
from app.db.invites import Invites
from app.db.keys import Keys
from app.db.users import Users
from app.security.passwords import Argon2idHasher
from app.security.tokens import hash_secret, is_api_key
from tests.cli.conftest import Cli
from tests.cli.records import adding, user


async def invites(database: Database) -> list[InviteRecord]:
    return await Invites(database).list(now=datetime.now(UTC))


def key_of(key: str) -> object:
    async def work(database: Database) -> KeyRecord | None:
        return await Keys(database).by_hash(hash_secret(key))

    return work


def named(name: str) -> object:
    async def work(database: Database) -> UserRecord | None:
        return await Users(database).by_name(name)

    return work


def test_invite_prints_the_token_alone_and_stores_only_its_hash(cli: Cli) -> None:
    done = cli("users", "invite", "--role", "admin", "--hours", "2")
    token = done.stdout.removesuffix("\n")
    assert "\n" not in token
    assert token not in done.stderr
    [invite] = cli.database(invites)
    assert (invite.role, invite.token_hash) == ("admin", hash_secret(token))
    assert 7100 < (invite.expires_at - invite.created_at).total_seconds() <= 7200


def test_users_from_first_to_last(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin"), user("eva")))
    cli("users", "role", "EVA", "admin")
    cli("users", "disable", "ada")
    found = {item["username"]: item for item in json.loads(cli("users", "list", "--json").stdout)}
    assert found["eva"]["role"] == "admin"
    assert found["ada"]["disabled_at"] is not None
    assert "password_hash" not in found["ada"]

    refused = cli("users", "delete", "eva", "--yes", code=1)
    assert "admin" in refused.stderr  # the last enabled one
    cli("users", "enable", "ada")
    cli("users", "delete", "eva", "--yes")
    assert [line.split()[:3] for line in cli("users", "list").stdout.splitlines()[1:]] == [["ada", "admin", "active"]]

    async def actions(database: Database) -> list[tuple[str, str | None, object]]:
        return [(line.action, line.actor, line.details["via"]) for line in await Audit(database).list()]

    assert {action for action, actor, via in cli.database(actions)} == {
        "user.role",
        "user.disable",
        "user.enable",
        "user.delete",
    }
    assert {(actor, via) for _, actor, via in cli.database(actions)} == {(None, "command line")}


def test_deleting_asks_and_nobody_there_means_no(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin"), user("eva")))
    assert "--yes" in cli("users", "delete", "eva", code=2).stderr
    assert "eva" in cli("users", "list").stdout


def test_password_comes_from_stdin_and_has_to_fit_the_policy(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin")))
    assert "at least 12" in cli("users", "password", "ada", stdin="short\n", code=1).stderr
    cli("users", "password", "ada", stdin="seven purple lamps on a hill\n")
    changed = cli.database(named("ada"))  # type: ignore[arg-type,var-annotated]
    assert Argon2idHasher().verify(changed.password_hash, "seven purple lamps on a hill")


def test_a_name_cannot_move_the_cursor(cli: Cli) -> None:
    cli.database(adding(user("eva\x1b[2Jl\u2028x")))
    listed = cli("users", "list").stdout
    assert "eva\\u001b[2Jl\\u2028x" in listed
    assert "\x1b" not in listed


def test_keys_from_first_to_last(cli: Cli) -> None:
    cli.database(adding(user("ada", "admin"), user("eva")))
    key = cli("keys", "create", "--user", "eva", "--name", "laptop", "--scopes", "read,predict", "--days", "1").stdout.strip()
    assert is_api_key(key)
    stored = cli.database(key_of(key))  # type: ignore[arg-type,var-annotated]
    assert stored.scopes == ("predict", "read")
    assert (stored.expires_at - stored.created_at).days == 1

    [shown] = json.loads(cli("keys", "list", "--json").stdout)
    assert (shown["username"], shown["name"], shown["id"]) == ("eva", "laptop", stored.id)
    assert key not in json.dumps(shown)
    assert "key_hash" not in shown

    cli("keys", "revoke", stored.id)
    assert cli.database(key_of(key)).revoked_at is not None  # type: ignore[arg-type]
    assert "laptop" not in cli("keys", "list", "--user", "eva").stdout
    assert "revoked" in cli("keys", "list", "--user", "eva", "--all").stdout


def test_keys_refuse_what_makes_no_sense(cli: Cli) -> None:
    cli.database(adding(user("eva")))
    assert "Only an admin" in cli("keys", "create", "--user", "eva", "--name", "x", "--scopes", "admin", code=1).stderr
    assert "--scopes takes" in cli("keys", "create", "--user", "eva", "--name", "x", "--scopes", "root", code=1).stderr
    assert "name is empty" in cli("keys", "create", "--user", "eva", "--name", " ", code=1).stderr
    assert "no live key" in cli("keys", "revoke", "nothing", code=1).stderr

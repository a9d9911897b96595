"""Two people and their documents: neither reads, changes, finds, counts or even notices the other's; an admin neither."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.api.test_documents import ready, stored
from tests.conftest import Account, Service, make_settings, running

ABSENT = "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"
SECRET = "The periwinkle launch code is seven violet herons."
WORDS = SECRET.lower().rstrip(".").split()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(make_settings(tmp_path_factory.mktemp("isolation"), memory={"embedder": "echo/echo"})) as found:
        yield found


@dataclass(frozen=True)
class Things:
    """What the owner has: a document in the collection ``vault``."""

    owner: Account
    document: dict[str, Any]
    chunk: str


@pytest.fixture(scope="module")
def things(service: Service) -> Things:
    owner = service.user()
    with service.client(owner) as client:
        document = stored(client, SECRET, "codes.txt", collection="vault")
        hits = client.post("/documents/search", json={"query": SECRET}).json()["hits"]
    return Things(owner, document, hits[0]["source"]["chunk"])


@pytest.fixture(scope="module", params=["user", "admin"])
def stranger(request: pytest.FixtureRequest, service: Service) -> Account:
    account = service.user() if request.param == "user" else service.admin()
    with service.client(account) as client:
        stored(client, f"The stranger {request.param} keeps violet herons too.", "own.txt", collection="mine")
    return account


CALLS = {
    "show": ("GET", "/documents/ID", None),
    "download": ("GET", "/documents/ID/file", None),
    "follow": ("GET", "/documents/ID/events", None),
    "reindex": ("POST", "/documents/ID/reindex", None),
    "delete": ("DELETE", "/documents/ID", None),
    "delete the collection": ("DELETE", "/documents?collection=COLLECTION", None),
    "list the collection": ("GET", "/documents?collection=COLLECTION", None),
    "search the collection": ("POST", "/documents/search", {"query": SECRET, "collection": "COLLECTION"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_anothers_is_absent(service: Service, things: Things, stranger: Account, name: str) -> None:
    method, path, body = CALLS[name]

    def ask(identifier: str, collection: str) -> httpx.Response:
        def fill(text: str) -> str:
            return text.replace("ID", identifier).replace("COLLECTION", collection)

        headers = {"X-Request-ID": "same", "Content-Type": "application/json"}
        content = None if body is None else fill(json.dumps(body))
        with service.client(stranger) as client:
            return client.request(method, fill(path), content=content, headers=headers)

    foreign, absent = ask(things.document["id"], "vault"), ask(ABSENT, "nothing")
    assert foreign.status_code == (404 if "ID" in path or method == "DELETE" else 200)
    assert foreign.content == absent.content
    assert b"periwinkle" not in foreign.content


def test_lists_cursors_and_counts_show_ones_own(service: Service, things: Things, stranger: Account) -> None:
    with service.client(stranger) as client:
        for after in (None, things.document["id"], "ffffffff-ffff-7fff-bfff-ffffffffffff"):
            text = client.get("/documents", params={} if after is None else {"after": after}).text
            assert "codes.txt" not in text
            assert things.document["id"] not in text
        assert [each["name"] for each in client.get("/documents/collections").json()["items"]] == ["mine"]


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_question_finds_what_is_anothers(service: Service, things: Things, stranger: Account, count: int) -> None:
    """Asks the library that the route calls: HTTP would only make it slow."""
    library, dice = service.services.documents, random.Random(5)
    queries = [" ".join(dice.choices(WORDS, k=dice.randint(1, 8))) for _ in range(count)]
    wanted: tuple[tuple[str, ...], ...] = ((), ("vault",), ("mine", "vault"))

    async def ask_all() -> list[str]:
        found = []
        for at, query in enumerate(queries):
            one = await library.search(stranger.id, query, k=50, collections=wanted[at % 3])
            found += [each.text for each in one.passages]
        return found

    texts = asyncio.run_coroutine_threadsafe(ask_all(), service.server.servers[0].get_loop()).result(120)
    assert texts
    assert not any("periwinkle" in text for text in texts)


def test_the_same_bytes_of_two_people_are_two_documents(service: Service, things: Things, stranger: Account) -> None:
    with service.client(stranger) as client:
        made = client.post("/documents", files={"file": ("x.txt", SECRET.encode())}, data={"collection": "vault"})
        assert made.status_code == 201, "that somebody else has them shows nowhere"
        assert made.json()["id"] != things.document["id"]
        assert made.json()["sha256"] == hashlib.sha256(SECRET.encode()).hexdigest()
        ready(client, made.json()["id"])
        assert client.delete("/documents", params={"collection": "vault"}).json() == {"deleted": 1}
    with service.client(things.owner) as client:
        assert client.get(f"/documents/{things.document['id']}").status_code == 200
        assert client.post("/documents/search", json={"query": "periwinkle"}).json()["hits"]


@pytest.mark.parametrize("field", ["user_id", "owner", "scope", "space", "document_id", "chunk", "where"])
def test_no_other_field_says_whose(service: Service, things: Things, stranger: Account, field: str) -> None:
    with service.client(stranger) as client:
        body = {"query": "periwinkle", field: things.owner.id}
        assert client.post("/documents/search", json=body).status_code == 422
        form = {field: things.owner.id}
        assert client.post("/documents", files={"file": ("x.txt", b"x")}, data=form).status_code == 422


def test_what_is_deleted_is_found_nowhere_and_in_no_cache(service: Service, things: Things) -> None:
    owner = service.user()
    with service.client(owner) as client:
        document = stored(client, "The cormorant password is blue.", "gone.txt")
        asked = {"prompt": "what is the cormorant password?", "documents": True, "temperature": 0}
        first = client.post("/predict", json=asked)
        assert first.status_code == 200
        assert client.post("/predict", json=asked).status_code == 200
        assert client.post("/documents/search", json={"query": "cormorant"}).json()["hits"]
        assert client.delete(f"/documents/{document['id']}").status_code == 204
        assert client.post("/documents/search", json={"query": "cormorant"}).json() == {"hits": [], "notes": []}
        after = client.post("/predict", json=asked).json()
        assert not after["cached"]
        assert not after.get("citations")
        assert client.get(f"/documents/{document['id']}/file").status_code == 404


def test_the_owner_still_has_everything(service: Service, things: Things) -> None:
    with service.client(things.owner) as client:
        assert client.get(f"/documents/{things.document['id']}").json() == things.document
        assert client.get(f"/documents/{things.document['id']}/file").text == SECRET
        hits = client.post("/documents/search", json={"query": SECRET}).json()["hits"]
        assert [hit["source"]["chunk"] for hit in hits] == [things.chunk]

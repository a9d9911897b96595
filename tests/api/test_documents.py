"""Documents over HTTP, with everything real: parser child, indexer, echo's vectors in FAISS, SQLite."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Account, Serve, Service, make_settings, running

TEXT = """# Tides

The harbour master writes down the height of the tide every hour.

# Lamps

The lighthouse keeper trims the violet lamp at dusk.
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(tmp_path_factory.mktemp("documents"), memory={"embedder": "echo/echo", "document_mb": 1})
    with running(settings) as found:
        yield found


def upload(
    client: httpx.Client, text: str | bytes = TEXT, name: str = "harbour.md", collection: str | None = None
) -> httpx.Response:
    data = {} if collection is None else {"collection": collection}
    content = text.encode() if isinstance(text, str) else text
    return client.post("/documents", files={"file": (name, content, "text/markdown")}, data=data)


def ready(client: httpx.Client, document_id: str, state: str = "ready") -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/documents/{document_id}").json()
        if found["state"] in ("ready", "failed"):
            assert found["state"] == state, found
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def stored(client: httpx.Client, *args: Any, **more: Any) -> dict[str, Any]:
    made = upload(client, *args, **more)
    assert made.status_code == 201, made.text
    return ready(client, made.json()["id"])


def search(client: httpx.Client, query: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/documents/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def person(service: Service) -> Account:
    """Registering takes half a second; what is refused needs nobody of its own."""
    return service.user()


def wipe(client: httpx.Client) -> None:
    for each in client.get("/documents/collections").json()["items"]:
        assert client.delete("/documents", params={"collection": each["name"]}).status_code == 200


def test_a_document_is_uploaded_indexed_found_and_deleted(service: Service, person: Account) -> None:
    with service.client(person) as client:
        wipe(client)
        made = upload(client, collection="sea")
        assert made.status_code == 201
        assert made.json()["state"] in ("queued", "indexing", "ready")
        document = ready(client, made.json()["id"])
        assert document["format"] == "md"
        assert document["progress"] == 1
        assert document["embedded"]
        assert document["chunks"] >= 2
        assert document["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
        found = search(client, "who trims the violet lamp?")
        best = found["hits"][0]
        assert best["document_id"] == document["id"]
        assert "lighthouse keeper" in best["text"]
        assert best["source"]["name"] == "harbour.md"
        assert best["source"]["collection"] == "sea"
        assert best["source"]["section"] == "Lamps"
        assert best["score"] == 1.0
        assert found["notes"] == []
        assert search(client, "violet lamp", collection="other") == {"hits": [], "notes": []}
        assert client.get("/documents/collections").json()["items"][0]["name"] == "sea"
        assert client.delete(f"/documents/{document['id']}").status_code == 204
        assert search(client, "violet lamp")["hits"] == []
        assert client.get(f"/documents/{document['id']}").status_code == 404
        assert client.get("/documents").json() == {"items": [], "next": None}


def test_the_same_bytes_again_are_the_same_document(service: Service, person: Account) -> None:
    with service.client(person) as client:
        wipe(client)
        first = stored(client, collection="a")
        again = upload(client, name="other.md", collection="a")
        assert again.status_code == 200
        assert again.json()["id"] == first["id"]
        other = upload(client, collection="b")
        assert other.status_code == 201
        ready(client, other.json()["id"])
        assert len(client.get("/documents", params={"collection": "b"}).json()["items"]) == 1


def test_pages_and_collections(service: Service, person: Account) -> None:
    with service.client(person) as client:
        wipe(client)
        ids = [stored(client, f"number {number}", "n.txt", collection=f"c{number % 2}")["id"] for number in range(4)]
        first = client.get("/documents", params={"limit": 3}).json()
        assert [each["id"] for each in first["items"]] == sorted(ids, reverse=True)[:3]
        rest = client.get("/documents", params={"limit": 3, "after": first["next"]}).json()
        assert [each["id"] for each in rest["items"]] == sorted(ids)[:1]
        counts = client.get("/documents/collections").json()["items"]
        assert [(each["name"], each["documents"]) for each in counts] == [("c0", 2), ("c1", 2)]
        assert client.delete("/documents").status_code == 422
        assert client.delete("/documents", params={"collection": "c0"}).json() == {"deleted": 2}
        assert client.delete("/documents", params={"collection": "c0"}).status_code == 404
        assert len(client.get("/documents").json()["items"]) == 2


def test_a_file_is_downloaded_as_it_came_and_never_shown(service: Service, person: Account) -> None:
    name = 'día "x"\r\nSet-Cookie: a=b; <script>.html'
    with service.client(person) as client:
        wipe(client)
        body = b"<html><body><p>hello harbour</p><script>alert(1)</script></body></html>"
        document = stored(client, body, name)
        assert "\r" not in document["name"]
        file = client.get(f"/documents/{document['id']}/file")
        assert file.content == body
        assert file.headers["content-type"] == "application/octet-stream"
        assert file.headers["x-content-type-options"] == "nosniff"
        shown = file.headers["content-disposition"]
        assert shown.startswith('attachment; filename="')
        assert shown.count('"') == 2
        assert "filename*=UTF-8''" in shown
        assert "set-cookie" not in file.headers


def test_a_damaged_file_fails_in_words_and_can_be_deleted(service: Service, person: Account) -> None:
    with service.client(person) as client:
        wipe(client)
        made = upload(client, b"%PDF-1.7\nnothing of the kind", "broken.pdf")
        document = ready(client, made.json()["id"], state="failed")
        assert document["error"]
        assert "/" not in document["error"]
        assert client.delete(f"/documents/{document['id']}").status_code == 204


def test_indexing_again_finds_the_same(service: Service, person: Account) -> None:
    with service.client(person) as client:
        wipe(client)
        document = stored(client)
        before = search(client, "violet lamp")
        again = client.post(f"/documents/{document['id']}/reindex")
        assert again.status_code == 202
        assert search(client, "violet lamp")["hits"], "what was found is found until the new index stands"
        ready(client, document["id"])
        after = search(client, "violet lamp")
        plain = [(hit["text"], hit["score"]) for hit in after["hits"]]
        assert plain == [(hit["text"], hit["score"]) for hit in before["hits"]]


def test_progress_can_be_followed(service: Service, person: Account) -> None:
    with service.client(person) as client:
        wipe(client)
        made = upload(client).json()
        with client.stream("GET", f"/documents/{made['id']}/events") as stream:
            assert stream.status_code == 200
            events = "".join(stream.iter_text())
        assert events.rstrip().split("\n\n")[-1].startswith("event: end\n")
        assert '"state":"ready"' in events


@pytest.mark.parametrize("collection", ["", "UPPER", "../x", ":facts", ":staged", "a" * 65, "a b", "ñ"])
def test_bad_collections_are_refused(service: Service, person: Account, collection: str) -> None:
    with service.client(person) as client:
        wipe(client)
        assert upload(client, collection=collection).status_code == 422
        assert client.post("/documents/search", json={"query": "a", "collection": collection}).status_code == 422
        assert client.get("/documents").json()["items"] == []


BOUNDARY = "xyz"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
END = f"\r\n--{BOUNDARY}--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        (HEAD + "cut off").encode(),
        END.encode(),
        (HEAD.replace('; filename="a.txt"', "") + "no file name" + END).encode(),
        (HEAD.replace('"file"', '"other"') + "unknown part" + END).encode(),
        (HEAD + "one\r\n" + HEAD + "two" + END).encode(),
        (HEAD + END).encode(),
        (HEAD.replace("form-data", "attachment") + "x" + END).encode(),
        (
            "\r\n".join(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="collection"\r\n\r\na' for _ in range(40))
        ).encode(),
        (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="collection"\r\n\r\n' + "a" * 9000 + END).encode(),
        (f"--{BOUNDARY}\r\n" + "X-Header: y\r\n" * 100 + "\r\nx" + END).encode(),
        (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{"a" * 9000}"\r\n\r\nx' + END).encode(),
    ],
)
def test_odd_forms_are_refused(service: Service, person: Account, body: bytes) -> None:
    with service.client(person) as client:
        wipe(client)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        assert client.post("/documents", content=body, headers=headers).status_code == 422
        assert client.get("/documents").json()["items"] == []


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "text/plain; boundary=x", "multipart/mixed; boundary=x"]
)
def test_other_types_are_refused(service: Service, person: Account, kind: str) -> None:
    with service.client(person) as client:
        wipe(client)
        assert client.post("/documents", content=b"{}", headers={"Content-Type": kind}).status_code == 415


def test_fields_after_the_file_count(service: Service, person: Account) -> None:
    field = f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="collection"\r\n\r\nlater'
    with service.client(person) as client:
        wipe(client)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        made = client.post("/documents", content=(HEAD + "text" + field + END).encode(), headers=headers)
        assert made.status_code == 201, made.text
        assert made.json()["collection"] == "later"


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_is_refused(service: Service, person: Account, chunked: bool) -> None:
    body = HEAD.encode() + b"x" * (1 << 20) + b"y" + END.encode()
    with service.client(person) as client:
        wipe(client)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        content: Any = iter([body[start : start + 65_536] for start in range(0, len(body), 65_536)]) if chunked else body
        assert client.post("/documents", content=content, headers=headers).status_code == 413
        huge = iter([HEAD.encode()] + [b"x" * 65_536] * 40) if chunked else HEAD.encode() + b"x" * (3 << 20)
        assert client.post("/documents", content=huge, headers=headers).status_code == 413
        assert client.get("/documents").json()["items"] == []


def test_a_client_that_leaves_leaves_nothing(service: Service) -> None:
    account = service.user()
    head = (
        f"POST /documents HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {account.token}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 100000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall((head + HEAD + "x" * 5000).encode())
        time.sleep(0.2)
    with service.client(account) as client:
        deadline = time.monotonic() + 5
        while service.services.documents._coming and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not service.services.documents._coming
        assert client.get("/documents").json()["items"] == []
    assert list((service.settings.data_dir / "uploads").iterdir()) == []


def test_a_query_is_never_an_expression(service: Service) -> None:
    owner, other = service.user(), service.user()
    with service.client(owner) as client, service.client(other) as stranger:
        stored(client, "the secret of the owner is periwinkle")
        stored(stranger, "something of the stranger's own")
        for query in (
            'periwinkle" OR words : "periwinkle',
            "scope : u* OR periwinkle",
            "words:periwinkle",
            "NEAR(periwinkle owner)",
            "periwinkle*",
            "'; DROP TABLE chunks; --",
            "periwinkle | secret & !x <-> y:*",
            "\\' || (SELECT 1)",
            "NOT AND OR",
            "ñ ç ß 漢字 😀",
            "-",
        ):
            assert all("periwinkle" not in hit["text"] for hit in search(stranger, query)["hits"]), query
        assert "periwinkle" in search(client, "periwinkle")["hits"][0]["text"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": ""},
        {"query": " "},
        {"query": "a" * 8001},
        {"query": "a", "k": 0},
        {"query": "a", "k": 51},
        {"query": "a", "k": "3"},
        {"query": "a\0b"},
        {"query": ["a"]},
        {"query": "a", "user_id": "x"},
        {"query": "a", "collection": ["x"]},
    ],
)
def test_bad_searches_are_refused(service: Service, person: Account, body: dict[str, Any]) -> None:
    with service.client(person) as client:
        wipe(client)
        assert client.post("/documents/search", json=body).status_code == 422


def test_without_an_embedder_words_are_searched(serve: Serve) -> None:
    service = serve(memory={"embedder": ""})
    with service.client(service.user()) as client:
        document = stored(client)
        assert not document["embedded"]
        assert document["notes"]
        found = search(client, "violet lamp")
        assert "violet" in found["hits"][0]["text"]
        assert found["notes"]


def test_an_account_that_goes_takes_its_documents_along(service: Service) -> None:
    user: Account = service.user()
    with service.client(user) as client:
        stored(client, "the canary sings at dawn")
        assert search(client, "canary")["hits"]
    with service.client(service.admin()) as admin:
        assert admin.delete(f"/auth/users/{user.id}").status_code == 204
    file = service.settings.data_dir / "aprendiz.db"
    assert b"canary sings" not in file.read_bytes()

"""``/v1/models`` over real sockets, in OpenAI's words and in Anthropic's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest

from tests.conftest import Service

ANTHROPIC = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.user()) as connected:
        yield connected


def test_the_list_has_openais_form(client: httpx.Client) -> None:
    answer = client.get("/v1/models")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["object"] == "list"
    assert [model["id"] for model in found["data"]] == ["default", "echo/echo"]
    assert all(set(model) == {"id", "object", "created", "owned_by"} and model["object"] == "model" for model in found["data"])
    assert all(isinstance(model["created"], int) for model in found["data"])


def test_one_model_by_its_name_with_the_slash(client: httpx.Client) -> None:
    for name in ("default", "echo/echo", "echo%2Fecho"):
        found = client.get(f"/v1/models/{name}").json()
        assert found["id"] == name.replace("%2F", "/")


@pytest.mark.parametrize("name", ["none", "echo", "echo/none", "..%2Fmodels", "echo/echo/", "%C3%B1", "a" * 500])
def test_another_name_is_404_in_the_vendors_form(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/v1/models/{name}")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("model_not_found", None)


def test_the_list_has_anthropics_form_for_those_who_say_so(client: httpx.Client) -> None:
    found = client.get("/v1/models", headers=ANTHROPIC).json()
    assert (found["has_more"], found["first_id"], found["last_id"]) == (False, "default", "echo/echo")
    assert all(set(model) == {"type", "id", "display_name", "created_at"} for model in found["data"])
    assert all(datetime.fromisoformat(model["created_at"]).tzinfo is not None for model in found["data"])
    one = client.get("/v1/models/echo/echo", headers=ANTHROPIC).json()
    assert one == found["data"][1]


def test_anthropics_pages(client: httpx.Client) -> None:
    first = client.get("/v1/models?limit=1", headers=ANTHROPIC).json()
    assert ([model["id"] for model in first["data"]], first["has_more"]) == (["default"], True)
    second = client.get(f"/v1/models?limit=1&after_id={first['last_id']}", headers=ANTHROPIC).json()
    assert ([model["id"] for model in second["data"]], second["has_more"]) == (["echo/echo"], False)
    back = client.get("/v1/models?limit=5&before_id=echo/echo", headers=ANTHROPIC).json()
    assert ([model["id"] for model in back["data"]], back["has_more"]) == (["default"], False)
    end = client.get("/v1/models?after_id=echo/echo", headers=ANTHROPIC).json()
    assert (end["data"], end["first_id"], end["last_id"]) == ([], None, None)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=1001", "limit=x", "limit=99999", "after_id=none", "before_id="]
)
def test_bad_pages_are_refused_in_anthropics_form(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/v1/models?{query}", headers=ANTHROPIC)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_key_that_may_predict_may_list_and_one_that_may_not_read_may_not(service: Service) -> None:
    user = service.user()
    statuses = {}
    for scope in ("predict", "read", "feedback"):
        with service.client(user) as client:
            key = client.post("/auth/keys", json={"name": scope, "scopes": [scope]}).json()["key"]
        with service.client() as client:
            statuses[scope] = client.get("/v1/models", headers={"x-api-key": key}).status_code
    assert statuses == {"predict": 200, "read": 200, "feedback": 403}

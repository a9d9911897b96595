"""``/v1/responses`` over real sockets: whole answers, stored ones, and what has to be refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conftest import Account, Service

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def create(service: Service, account: Account, **body: Any) -> dict[str, Any]:
    """A whole response."""
    with service.client(account) as client:
        answer = client.post(PATH, json={"model": "default", **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: httpx.Response, status: int, param: str | None) -> str:
    """The message of a refusal in the vendor's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    return str(error["message"])


def test_a_response_is_complete(service: Service, user: Account) -> None:
    body = create(service, user, input="good morning", instructions="be kind", metadata={"a": "b"})
    assert body["object"] == "response"
    assert body["status"] == "completed"
    assert body["model"] == "echo/echo"
    assert body["instructions"] == "be kind"
    assert body["metadata"] == {"a": "b"}
    (item,) = body["output"]
    assert item == {
        "id": f"msg_{body['id']}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "good morning"}],
    }
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    assert set(body["aprendiz"]) == {"version", "cached", "fallback", "feedback_token"}

"""Asks ``/v1/responses`` of a running service, for the tests of that format."""

from __future__ import annotations

from typing import Any

import httpx

from tests.conftest import Account, Service

PATH = "/v1/responses"
ABSENT = "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def ask(service: Service, account: Account, **body: Any) -> httpx.Response:
    """The answer to a call, whatever it is."""
    with service.client(account) as client:
        return client.post(PATH, json={"model": "default", **body})


def create(service: Service, account: Account, **body: Any) -> dict[str, Any]:
    """A whole response."""
    answer = ask(service, account, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def get(service: Service, account: Account, response_id: str, tail: str = "", **params: Any) -> httpx.Response:
    """What is stored."""
    with service.client(account) as client:
        return client.get(f"{PATH}/{response_id}{tail}", params=params)


def text(body: dict[str, Any]) -> str:
    """What the SDK calls ``output_text``."""
    parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def refused(answer: httpx.Response, status: int, param: str | None) -> str:
    """The message of a refusal in the vendor's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    return str(error["message"])


def read_by(service: Service, account: Account, response_id: str) -> list[dict[str, Any]]:
    """What the model of a stored response read, as items in their order."""
    listed = get(service, account, response_id, "/input_items", order="asc", limit=100)
    assert listed.status_code == 200, listed.text
    items: list[dict[str, Any]] = listed.json()["data"]
    return items


def told(body: dict[str, Any]) -> dict[str, Any]:
    """A response without its feedback token, which tells when it was signed."""
    return {**body, "aprendiz": {name: value for name, value in body["aprendiz"].items() if name != "feedback_token"}}

"""``/v1/embeddings`` over real sockets, in OpenAI's words, on the echo provider."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Serve, Service

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.user()) as connected:
        yield connected


def embed(client: httpx.Client, said: Any, **more: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"model": "default", "input": said, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_vectors_come_in_the_vendors_form(client: httpx.Client) -> None:
    answer = client.post(PATH, json={"model": "default", "input": ["a red car", "a blue boat", "a red car"]})
    found = answer.json()
    assert set(found) == {"object", "data", "model", "usage"}
    assert (found["object"], found["model"]) == ("list", "echo/echo")
    assert [(each["object"], each["index"]) for each in found["data"]] == [("embedding", 0), ("embedding", 1), ("embedding", 2)]
    assert found["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    one, other, again = (each["embedding"] for each in found["data"])
    assert len(one) == 64
    assert one == again
    assert one != other
    assert abs(sum(value * value for value in one) - 1) < 1e-9
    assert int(answer.headers["x-ratelimit-limit-requests"]) > 0
    assert answer.headers.get_list("cache-control") == ["no-store"]


def test_base64_holds_the_same_numbers(client: httpx.Client) -> None:
    plain = embed(client, "a red car", encoding_format="float", dimensions=8)["data"][0]["embedding"]
    packed = base64.b64decode(embed(client, "a red car", encoding_format="base64", dimensions=8)["data"][0]["embedding"])
    assert len(plain) == 8
    assert struct.unpack("<8f", packed) == pytest.approx(plain, rel=1e-6)


def test_nulls_and_a_user_are_accepted(client: httpx.Client) -> None:
    embed(client, "a", dimensions=None, encoding_format=None, user=None)
    embed(client, "a", user="u")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", "b\0"]}, "input[1]"),
        ({"input": [1, 2]}, "input[0]"),
        ({"input": [[1, 2]]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 65}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "model": "a b"}, "model"),
        ({"input": "a", "x": 1}, "x"),
    ],
)
def test_bad_input_is_named(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = client.post(PATH, json={"model": "default", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_as_many_texts_as_are_allowed(client: httpx.Client) -> None:
    assert len(embed(client, ["a"] * 2048, dimensions=2)["data"]) == 2048


def test_limits_count_here_too(serve: Serve) -> None:
    service = serve(rate_limits={"predict": "1/minute"})
    with service.client(service.user()) as client:
        embed(client, "a")
        answer = client.post(PATH, json={"model": "default", "input": "a"})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"

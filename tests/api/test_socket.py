"""``/predict/ws`` over a real WebSocket client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Account, Serve, Service


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def open_socket(service: Service, account: Account | None, **headers: str) -> Any:
    own = account.headers if account is not None else {}
    return connect(f"ws://127.0.0.1:{service.port}/predict/ws", additional_headers={**own, **headers}, proxy=None)


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        frame: dict[str, Any] = json.loads(await socket.recv())
    return frame


async def until_end(socket: ClientConnection) -> list[dict[str, Any]]:
    frames = [await receive(socket)]
    while frames[-1]["event"] == "delta":
        frames.append(await receive(socket))
    return frames


async def test_many_answers_on_one_socket(service: Service, user: Account) -> None:
    async with open_socket(service, user) as socket:
        for prompt in ("one two three", "four"):
            await socket.send(json.dumps({"prompt": prompt}))
            frames = await until_end(socket)
            assert frames[-1]["event"] == "done"
            assert frames[-1]["data"]["text"] == prompt
            assert "".join(frame["data"]["text"] for frame in frames[:-1]) == prompt
    with service.client(user) as client:
        body = {"prediction_id": frames[-1]["data"]["id"], "rating": "up"}
        assert client.post("/feedback", json=body).status_code == 201


@pytest.mark.parametrize(
    "frame",
    ["", "{", "[]", '{"prompt":"a\\u0000"}', '{"prompt":"a","n":1}', '{"prompt":NaN}', "[" * 50_000, b"\x00", '{"cancel":1}'],
)
async def test_a_bad_frame_is_a_problem_and_the_socket_stays(service: Service, user: Account, frame: str | bytes) -> None:
    async with open_socket(service, user) as socket:
        await socket.send(frame)
        problem = await receive(socket)
        assert problem["event"] == "problem"
        assert problem["data"]["status"] == 422
        await socket.send(json.dumps({"prompt": "still here"}))
        assert (await until_end(socket))[-1]["data"]["text"] == "still here"


async def test_one_answer_at_a_time(serve: Serve) -> None:
    service = serve(model={"model": "slow"})
    async with open_socket(service, service.admin()) as socket:
        await socket.send(json.dumps({"prompt": "word " * 200}))
        assert (await receive(socket))["event"] == "delta"
        await socket.send(json.dumps({"prompt": "another"}))
        frame = await receive(socket)
        while frame["event"] == "delta":
            frame = await receive(socket)
        assert frame["event"] == "problem"
        assert frame["data"]["status"] == 409
        await socket.send('{ "cancel": true }')
        end = (await until_end(socket))[-1]
        assert end["event"] == "done"
        assert end["data"]["finish_reason"] == "cancelled"
        assert end["data"]["text"].startswith("word")
        assert service.services.models.status().running == 0


async def test_leaving_stops_the_work(serve: Serve) -> None:
    service = serve(model={"model": "slow"})
    async with open_socket(service, service.admin()) as socket:
        await socket.send(json.dumps({"prompt": "word " * 500}))
        await receive(socket)
        assert service.services.models.status().running == 1
    for _ in range(100):
        if service.services.models.status().running == 0:
            break
        await asyncio.sleep(0.02)
    assert service.services.models.status().running == 0


async def test_an_unknown_model_is_a_problem(service: Service, user: Account) -> None:
    async with open_socket(service, user) as socket:
        await socket.send(json.dumps({"prompt": "a", "model": "nope"}))
        assert (await receive(socket))["data"]["status"] == 404


async def test_the_handshake_needs_a_credential(service: Service) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(service, None, **headers):
                pass
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["content-type"] == "application/problem+json"
        assert refused.value.response.headers["x-request-id"]


async def test_a_foreign_page_cannot_use_the_cookie(service: Service, user: Account) -> None:
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(service, None, Cookie="session=x", Origin=origin):
                pass
        assert refused.value.response.status_code == 403


async def test_a_large_frame_closes_the_socket(service: Service, user: Account) -> None:
    async with open_socket(service, user) as socket:
        await socket.send("a" * 1_100_000)
        with pytest.raises(ConnectionClosed):
            await receive(socket)


async def test_it_ends_within_five_seconds_of_its_session(service: Service) -> None:
    user = service.user()
    async with open_socket(service, user) as socket:
        await socket.send(json.dumps({"prompt": "a"}))
        await until_end(socket)
        with service.client(user) as client:
            assert client.post("/auth/logout").status_code == 204
        async with asyncio.timeout(5):
            problem = json.loads(await socket.recv())
            assert problem["data"]["status"] == 401
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008

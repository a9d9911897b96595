"""Clients that leave, that are slow, and sessions that end: what happens to the work behind them."""

from __future__ import annotations

import asyncio
import socket
import time

import httpx
import pytest

from app.api import sse
from tests.api.events import read_events
from tests.conftest import Account, Serve, Service

LONG = "word " * 1500


@pytest.fixture
def slow(serve: Serve) -> Service:
    return serve(model={"model": "slow", "slots": 2, "queue": 10})


def ask(service: Service, account: Account, *, stream: bool, prompt: str = LONG) -> socket.socket:
    """Sends a request and returns its socket, without reading."""
    body = f'{{"prompt":"{prompt}","stream":{str(stream).lower()}}}'
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    connection.sendall(
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {account.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return connection


def wait_for(service: Service, running: int) -> None:
    deadline = time.monotonic() + 5
    while service.services.models.status().running != running:
        assert time.monotonic() < deadline, service.services.models.status()
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_ends_the_work_at_once(slow: Service, stream: bool) -> None:
    account = slow.admin()
    connections = [ask(slow, account, stream=stream) for _ in range(5)]
    wait_for(slow, 5)
    for connection in connections:
        connection.close()
    wait_for(slow, 0)
    with slow.client(account) as client:  # and the service is as before
        assert client.post("/predict", json={"prompt": "a"}).json()["text"] == "a"


def test_what_was_cut_is_stored_as_cancelled(slow: Service) -> None:
    account = slow.admin()
    with slow.client(account) as client, client.stream("POST", "/predict", json={"prompt": LONG, "stream": True}) as answer:
        next(answer.iter_lines())
    wait_for(slow, 0)
    counted = 'aprendiz_predictions_total{model="echo/slow",status="cancelled"} 1.0'
    deadline = time.monotonic() + 5
    with slow.client() as client:
        while counted not in client.get("/metrics").text:  # the slot is free before the record is written
            assert time.monotonic() < deadline


def test_a_stream_ends_within_five_seconds_of_its_session(slow: Service) -> None:
    user = slow.user()
    with slow.client(user) as client, client.stream("POST", "/predict", json={"prompt": LONG, "stream": True}) as answer:
        chunks = answer.iter_text()
        next(chunks)
        with slow.client(user) as other:
            assert other.post("/auth/logout").status_code == 204
        ended = time.monotonic()
        rest = "".join(chunks)
        assert time.monotonic() - ended < 5
    name, problem = read_events(rest)[-1]
    assert name == "problem"
    assert problem["status"] == 401
    wait_for(slow, 0)


def test_an_engine_that_breaks_is_a_final_event(serve: Serve) -> None:
    service = serve(model={"model": "breaks"})
    with service.client(service.admin()) as client:
        streamed = client.post("/predict", json={"prompt": "one two three four five", "stream": True})
        whole = client.post("/predict", json={"prompt": "one two three four five"})
    events = read_events(streamed.text)
    assert streamed.status_code == 200
    assert [name for name, _ in events] == ["delta", "delta", "delta", "problem"]
    assert events[-1][1]["type"] == "urn:aprendiz:problem:engine-unavailable"
    assert whole.status_code == 503
    assert int(whole.headers["retry-after"]) >= 1


def test_a_reader_that_takes_nothing_holds_no_memory(serve: Serve) -> None:
    service = serve(model={"model": "echo", "context_tokens": 1_000_000, "max_tokens": 131_072})
    account = service.admin()
    connections = [ask(service, account, stream=True, prompt="word " * 39_999) for _ in range(3)]
    time.sleep(1.5)
    assert service.services.models.status().running == 3  # they wait for their readers
    with service.client(account) as client:
        assert client.post("/predict", json={"prompt": "a"}).status_code == 200
    for connection in connections:
        connection.close()
    wait_for(service, 0)


def test_many_at_once(service: Service) -> None:
    account = service.user()

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, headers=account.headers, trust_env=False, verify=False) as client:
            bodies = [{"prompt": f"number {n}", "stream": n % 2 == 0} for n in range(60)]
            return await asyncio.gather(*(client.post("/predict", json=body, timeout=20) for body in bodies))

    answers = asyncio.run(run())
    for number, answer in enumerate(answers):
        assert answer.status_code == 200
        text = read_events(answer.text)[-1][1]["text"] if number % 2 == 0 else answer.json()["text"]
        assert text == f"number {number}"


async def test_the_mailbox_gives_all_that_is_ready_and_waits_when_full() -> None:
    box: sse.Mailbox[int] = sse.Mailbox(2)
    assert await box.take(0.01) == []
    await box.put(1)
    await box.put(2)
    third = asyncio.create_task(box.put(3))
    await asyncio.sleep(0)
    assert not third.done()
    assert await box.take(1) == [1, 2]
    await third
    box.end(ValueError("end"))
    assert await box.take(1) == [3]
    with pytest.raises(ValueError, match="end"):
        await box.take(1)


def test_an_event_is_one_line_of_data() -> None:
    assert sse.delta("a\n\ndata: x\r") == b'event: delta\ndata: {"text":"a\\n\\ndata: x\\r"}\n\n'
    assert sse.event("done", {"a": 1}) == b'event: done\ndata: {"a":1}\n\n'

"""The server under slow, broken, many and huge clients."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from app.api import server as server_module
from app.api.protocol import MAX_CONNECTIONS, BoundedProtocol
from app.api.server import bound_socket
from app.core.errors import ConfigurationError
from tests.conftest import Serve, Service, make_settings, running

TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(tmp_path_factory.mktemp("service"), server={"receive_timeout_s": TIMEOUT_S})
    with running(settings) as service:
        yield service


def dial(service: Service, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_half_open_connections_are_cut_and_harm_nobody(quick: Service) -> None:
    began = time.monotonic()
    crowd = [dial(quick, b"GET /health/live HTTP/1.1\r\nHost: local") for _ in range(300)]
    with quick.client() as client:
        for _ in range(20):
            assert client.get("/health/live").status_code == 200
    answers = [read_all(connection) for connection in crowd]
    assert time.monotonic() - began < 15
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
    for connection in crowd:
        connection.close()


def test_a_drip_of_header_bytes_buys_no_time(quick: Service) -> None:
    connection = dial(quick)
    began = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 200:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
            if time.monotonic() - began > 5:
                break
    assert time.monotonic() - began < 5
    connection.close()


def test_silence_is_cut_without_a_word(quick: Service) -> None:
    with dial(quick) as connection:
        assert read_all(connection) == b""


def test_a_slow_body_is_408(quick: Service) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with dial(quick, head) as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


def test_keep_alive_serves_many_requests_and_a_second_late_head_is_cut(quick: Service) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with dial(quick) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(TIMEOUT_S / 2)
        connection.sendall(request[:20])
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_pipelined_requests_are_answered_in_order(quick: Service) -> None:
    requests = b"".join(f"GET /n{n} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: n{n}\r\n\r\n".encode() for n in range(5))
    with dial(quick, requests) as connection:
        received = b""
        while received.count(b"x-request-id: n") < 5:
            received += connection.recv(65536)
    places = [received.index(b"x-request-id: n%d" % n) for n in range(5)]
    assert places == sorted(places)


def test_a_request_right_behind_a_large_body_harms_neither(quick: Service) -> None:
    # As a client sends that was refused before its body was read, and asks again on the same connection.
    head = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    last = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with dial(quick, head % 200_000 + b"a" * 200_000 + last) as connection:
        answers = read_all(connection)
    assert b"framing" not in answers
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 200 OK" in answers


def test_headers_over_32_kib_are_431_before_they_end(quick: Service) -> None:
    connection = dial(quick, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n")
    with contextlib.suppress(OSError):
        for number in range(2000):
            connection.sendall(b"X-%d: " % number + b"a" * 100 + b"\r\n")
    assert read_all(connection).startswith(b"HTTP/1.1 431 ")
    connection.close()


def test_trailers_are_no_headers_and_bounded(quick: Service) -> None:
    head = (
        b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with dial(quick, head + b"2\r\n{}\r\n0\r\nX-Trailer: a\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")
    connection = dial(quick, head + b"2\r\n{}\r\n0\r\nX-Trailer: ")
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(b"a" * 65_536)
    assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")
    connection.close()


def test_connections_beyond_the_bound_are_closed_at_once(quick: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick.server.config.http_protocol_class, "max_connections", 20)
    crowd = [dial(quick) for _ in range(30)]
    time.sleep(0.2)
    closed = 0
    for connection in crowd:
        connection.setblocking(False)
        try:
            closed += connection.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionResetError:
            closed += 1
    assert closed >= 10
    for connection in crowd:
        connection.close()


def test_an_answer_before_the_body_does_not_keep_the_connection(quick: Service) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    connection = dial(quick, head)
    assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 10:
            connection.sendall(b"a")
            time.sleep(0.05)
    assert time.monotonic() - began < 10
    connection.close()


def test_the_server_names_no_software(service: Service) -> None:
    with service.client() as client:
        answer = client.get("/health/live")
    assert "server" not in answer.headers
    assert "date" in answer.headers


def test_an_upgrade_we_do_not_know_is_ignored(service: Service) -> None:
    with service.client() as client:
        answer = client.get("/health/live", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    assert answer.status_code == 200


def test_a_taken_port_is_said_plainly() -> None:
    with bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        with (
            pytest.raises(ConfigurationError, match=r"Cannot listen on 127\.0\.0\.1 port"),
            bound_socket("127.0.0.1", listener.getsockname()[1]),
        ):
            pass
    with pytest.raises(ConfigurationError, match="not an address"), bound_socket("no-such-host.invalid", 0):
        pass


def test_the_bound_fits_the_file_limit() -> None:
    assert 64 <= server_module._raise_file_limit() <= MAX_CONNECTIONS
    assert BoundedProtocol.max_connections == MAX_CONNECTIONS


def test_cors_for_named_origins_only(serve: Serve) -> None:
    service = serve(server={"cors_origins": ["https://app.example"]})
    with service.client() as client:

        def preflight(origin: str) -> httpx.Response:
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            }
            return client.options("/predict", headers=headers)

        assert preflight("https://app.example").headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in preflight("https://app.example").headers
        assert "access-control-allow-origin" not in preflight("https://evil.example").headers
        limited = client.get("/model", headers={"Origin": "https://app.example"})
        assert limited.headers["access-control-allow-origin"] == "https://app.example"


def test_the_api_limit_is_429_with_headers(serve: Serve) -> None:
    service = serve(rate_limits={"api": "5/minute"})
    with service.client() as client:
        answers = [client.get("/model") for _ in range(8)]
        assert client.get("/health/live").status_code == 200  # not counted
    assert answers[0].headers["ratelimit-policy"] == '"api";q=5;w=60'
    assert answers[-1].status_code == 429
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_guessing_credentials_is_limited_before_they_are_looked_at(serve: Serve) -> None:
    service = serve(rate_limits={"predict": "1/minute", "api": "5/minute"})
    with service.client() as client:
        for method, path in (("POST", "/predict"), ("GET", "/feedback")):
            answers = [
                client.request(method, path, headers={"Authorization": f"Bearer apz_{n:043}"}).status_code for n in range(8)
            ]
            assert answers == [401] * 5 + [429] * 3, path


def test_forged_addresses_do_not_escape_the_limit(serve: Serve) -> None:
    service = serve(rate_limits={"api": "5/minute"})
    with service.client() as client:
        answers = [
            client.get("/model", headers={"X-Forwarded-For": f"10.0.0.{n}", "X-Real-IP": f"10.0.0.{n}"}).status_code
            for n in range(8)
        ]
    assert answers[-1] == 429


def test_a_refusal_reaches_a_client_that_sends_on_before_it_reads(quick: Service) -> None:
    head = (
        b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with dial(quick, head) as connection:
        for _ in range(256):
            connection.sendall(b"10000\r\n" + b"a" * 65_536 + b"\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(service: Service) -> None:
    head = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    with dial(service, head + b"Expect: 100-continue\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")


def test_refused_headers_are_told_to_a_client_that_sends_on(quick: Service) -> None:
    with dial(quick, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: ") as connection:
        connection.sendall(b"a" * 8_000_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_who_does_not_stop_sending_after_a_refusal_is_cut(quick: Service) -> None:
    with dial(quick, b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 10:
                connection.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/health/live", 200),
        (b"http://evil.example/health/live", 400),
        (b"http://localhost:1/health/live", 400),
    ],
)
def test_a_target_in_absolute_form_names_the_host_that_was_checked(quick: Service, target: bytes, status: int) -> None:
    with dial(quick, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("path", [b"/feedback", b"/auth/token", b"/predict"])
def test_a_client_that_leaves_within_its_body_is_no_fault_of_ours(
    service: Service, caplog: pytest.LogCaptureFixture, path: bytes
) -> None:
    head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    credential = f"Authorization: Bearer {service.admin().token}\r\n\r\n".encode()
    with dial(service, head + credential + b"{"):
        time.sleep(0.1)
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_refused_handshake_is_no_fault_of_ours(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    head = b"GET /predict/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with dial(
        service, head + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")
    time.sleep(0.1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

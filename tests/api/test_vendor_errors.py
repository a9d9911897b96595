"""Our errors in the forms of OpenAI and Anthropic: statuses, types and codes by which their SDKs choose and retry."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from app.api.problems import STATUS, response_of, vendor_body
from app.api.vendor_errors import anthropic, form_of, openai
from app.core import errors
from app.core.errors import AprendizError
from tests.conftest import Service

VERSION = [(b"anthropic-version", b"2023-06-01")]


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.user()) as connected:
        yield connected


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/predict", None),
        ("/v1", None),
        ("/v1x/chat", None),
        ("/v1/chat/completions", openai),
        ("/v1/none", openai),
        ("/v1/messagesx", openai),
        ("/v1/messages", anthropic),
        ("/v1/messages/count_tokens", anthropic),
        ("/v1/models", openai),
        ("/v1/modelsx", openai),
    ],
)
def test_each_path_speaks_one_form(path: str, form: object) -> None:
    assert form_of(path) is form
    assert form_of(path, VERSION) is (anthropic if path == "/v1/models" else form)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.InvalidRequest("x", field="n"), 400, "invalid_request_error", None),
        (errors.UnsupportedMediaType("x"), 400, "invalid_request_error", None),
        (errors.PayloadTooLarge("x"), 413, "invalid_request_error", None),
        (errors.ContextOverflow("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (errors.Unauthenticated("x"), 401, "invalid_request_error", "invalid_api_key"),
        (errors.Forbidden("x"), 403, "invalid_request_error", "insufficient_permissions"),
        (errors.UnknownModel("x"), 404, "invalid_request_error", "model_not_found"),
        (errors.NotFound("x"), 404, "invalid_request_error", None),
        (errors.Conflict("x"), 409, "invalid_request_error", None),
        (errors.TooManyRequests("x"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.QueueFullForUser("x"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.BudgetExhausted("x"), 429, "insufficient_quota", "insufficient_quota"),
        (errors.Overloaded("x"), 503, "server_error", "overloaded"),
        (errors.UpstreamBusy("x"), 503, "server_error", "upstream_busy"),
        (errors.StorageFull("x"), 507, "server_error", "storage_full"),
        (errors.UpstreamError("x"), 502, "server_error", "upstream_error"),
        (errors.UpstreamTimeout("x"), 504, "server_error", "upstream_timeout"),
        (RuntimeError("secret"), 500, "server_error", "internal_error"),
    ],
)
def test_openais_form(error: Exception, status: int, kind: str, code: str | None) -> None:
    answer = response_of(error, "/v1/chat/completions")
    body = json.loads(bytes(answer.body))
    assert answer.status_code == status
    assert set(body) == {"error"}
    assert (body["error"]["type"], body["error"]["code"]) == (kind, code)
    assert body["error"]["param"] == getattr(error, "field", None)
    assert "secret" not in str(body)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest("x", field="max_tokens"), 400, "invalid_request_error"),
        (errors.PayloadTooLarge("x"), 413, "request_too_large"),
        (errors.Unauthenticated("x"), 401, "authentication_error"),
        (errors.Forbidden("x"), 403, "permission_error"),
        (errors.UnknownModel("x"), 404, "not_found_error"),
        (errors.TooManyRequests("x"), 429, "rate_limit_error"),
        (errors.Overloaded("x"), 529, "overloaded_error"),
        (errors.UpstreamBusy("x"), 529, "overloaded_error"),
        (errors.EngineUnavailable("x"), 503, "api_error"),
        (errors.UpstreamTimeout("x"), 504, "timeout_error"),
        (errors.UpstreamError("x"), 502, "api_error"),
        (RuntimeError("secret"), 500, "api_error"),
    ],
)
def test_anthropics_form(error: Exception, status: int, kind: str) -> None:
    answer = response_of(error, "/v1/messages")
    body = json.loads(bytes(answer.body))
    assert answer.status_code == status
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert "secret" not in str(body)
    field = getattr(error, "field", None)
    assert field is None or field in body["error"]["message"]


def test_every_error_of_ours_has_a_place_in_both_forms() -> None:
    for kind in STATUS:
        error = kind("Do this.", retry_after=2) if kind is not AprendizError else kind("secret")
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = response_of(error, path)
            assert answer.headers["content-type"] == "application/json"
            assert 400 <= answer.status_code < 600
            assert answer.status_code != 422
            assert answer.headers.get("retry-after") == "2" or kind is AprendizError
        assert vendor_body(error, openai)["error"]["message"]
        assert vendor_body(error, anthropic)["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2023-06-01"}])
def test_errors_from_outside_the_routes_have_the_form_too(service: Service, headers: dict[str, str]) -> None:
    with service.client() as client:
        nobody = client.get("/v1/models", headers=headers)
        method = client.delete("/v1/models", headers=headers)
        host = client.get("/v1/models", headers={**headers, "Host": "evil.example"})
    assert (nobody.status_code, method.status_code) == (401, 405)
    assert host.status_code in (400, 403, 421)
    for answer in (nobody, method, host):
        body = answer.json()
        assert ("type" in body) == bool(headers), body
        assert body["error"]["message"]
        assert body["error"]["type"]


def test_a_path_that_is_not_there(client: httpx.Client) -> None:
    answer = client.post("/v1/images/generations", json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"

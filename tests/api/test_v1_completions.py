"""``/v1/completions`` over real sockets, in OpenAI's older words, on the echo provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Account, Serve, Service

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


@pytest.fixture(scope="module")
def client(service: Service, user: Account) -> Iterator[httpx.Client]:
    with service.client(user) as connected:
        yield connected


def ask(client: httpx.Client, prompt: Any = "one two", **more: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"model": "default", "prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(client: httpx.Client, prompt: Any = "one two", **more: Any) -> list[dict[str, Any]]:
    answer = client.post(PATH, json={"model": "default", "prompt": prompt, "stream": True, **more})
    assert answer.status_code == 200, answer.text
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def refused(client: httpx.Client, **more: Any) -> str | None:
    answer = client.post(PATH, json={"model": "default", "prompt": "a", **more})
    assert answer.status_code == 400, answer.text
    param: str | None = answer.json()["error"]["param"]
    return param


def test_a_whole_answer_has_the_vendors_form(service: Service, client: httpx.Client, user: Account) -> None:
    found = ask(client)
    assert list(found) == ["id", "object", "created", "model", "choices", "usage", "system_fingerprint", "aprendiz"]
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"text": "one two", "index": 0, "logprobs": None, "finish_reason": "stop", "prediction_id": found["id"]}
    ]
    with service.client(user) as own:
        assert own.post("/feedback", json={"prediction_id": found["id"], "rating": "up"}).status_code == 201


def test_the_prompt_is_bare(client: httpx.Client) -> None:
    assert ask(client)["usage"]["prompt_tokens"] == 2, "no system message, no template"


def test_sixteen_tokens_unless_told(client: httpx.Client) -> None:
    found = ask(client, "a " * 20)
    assert (found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]) == (16, "length")


def test_prompts_and_choices_come_in_order(client: httpx.Client) -> None:
    found = ask(client, ["a", "b c"], n=2, best_of=2, seed=1, echo=True)
    assert [(choice["index"], choice["text"]) for choice in found["choices"]] == [
        (0, "aa"),
        (1, "aa"),
        (2, "b cb c"),
        (3, "b cb c"),
    ]
    assert len({choice["prediction_id"] for choice in found["choices"]}) == 4
    assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (3, 6)


def test_logprobs_are_lists_side_by_side(client: httpx.Client) -> None:
    expected = {
        "tokens": ["one", " two"],
        "token_logprobs": [0.0, 0.0],
        "top_logprobs": [{"one": 0.0}, {" two": 0.0}],
        "text_offset": [0, 3],
    }
    assert ask(client, logprobs=1)["choices"][0]["logprobs"] == expected
    assert ask(client, logprobs=0)["choices"][0]["logprobs"] == {**expected, "top_logprobs": None}
    assert ask(client, logprobs=1, echo=True)["choices"][0]["logprobs"]["text_offset"] == [7, 10]
    told = [chunk["choices"][0] for chunk in stream(client, logprobs=1) if chunk["choices"][0]["logprobs"]]
    assert [(each["text"], each["logprobs"]["text_offset"]) for each in told] == [("one", [0]), (" two", [3])]


def test_a_stream_has_the_same_form(client: httpx.Client) -> None:
    *chunks, last = stream(client, ["a b", "c"], echo=True, stream_options={"include_usage": True})
    texts, reasons = ["", ""], ["", ""]
    for chunk in chunks:
        assert (chunk["object"], chunk["usage"]) == ("text_completion", None)
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert (texts, reasons) == (["a ba b", "cc"], ["stop", "stop"])
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 6


def test_a_failure_after_the_head_is_an_error_and_no_end(serve: Serve) -> None:
    service = serve(model={"model": "breaks+slow"})
    with service.client(service.user()) as client:
        answer = client.post(PATH, json={"model": "default", "prompt": "a b c d e", "stream": True})
    assert "[DONE]" not in answer.text
    last = answer.text.rstrip("\n").split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"


def test_what_cannot_be_kept_is_refused_by_name(client: httpx.Client) -> None:
    assert refused(client, suffix="x") == "suffix"
    assert refused(client, best_of=2) == "best_of"
    assert refused(client, n=2, best_of=1) == "best_of"
    assert refused(client, prompt=["a"] * 5, n=8) == "prompt"
    assert refused(client, stream_options={}) == "stream_options"
    assert refused(client, prompt="") == "prompt"
    assert refused(client, prompt=None) == "prompt"
    assert refused(client, prompt=[]) == "prompt"
    assert refused(client, prompt=["a"] * 17) == "prompt"
    assert refused(client, prompt=[1, 2]) == "prompt[0]"
    assert refused(client, prompt=[[1, 2]]) == "prompt[0]"
    assert refused(client, prompt=["a", "\0"]) == "prompt[1]"
    assert refused(client, messages=[]) == "messages"


def test_nulls_are_accepted(client: httpx.Client) -> None:
    names = (
        "max_tokens", "temperature", "top_p", "top_k", "n", "best_of", "echo", "suffix", "logprobs", "logit_bias", "stop",
        "seed", "presence_penalty", "frequency_penalty", "stream", "stream_options", "user",
    )  # fmt: skip
    assert ask(client, **dict.fromkeys(names))["choices"][0]["text"] == "one two"
    assert ask(client, suffix="")["choices"][0]["text"] == "one two"

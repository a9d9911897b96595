"""The OpenAI shapes on the bundled model: grammar, probabilities, seeds, stops and tools as the engine really does them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Serve

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def body(said: str, **more: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": said}], "max_tokens": 48, "temperature": 0, **more}


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    *found, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in found]


@pytest.mark.model
def test_the_shapes_on_a_real_model(serve: Serve, model_file: Path) -> None:
    service = serve(model={"provider": "llamacpp", "model": str(model_file), "context_tokens": 1024, "slots": 2, "threads": 2})
    with service.client(service.user()) as client:
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
        whole = client.post(CHAT, json=body("Name a city.", response_format=form)).json()
        assert set(json.loads(whole["choices"][0]["message"]["content"])) == {"city", "people"}

        told = client.post(CHAT, json=body("Count to three.", logprobs=True, top_logprobs=2)).json()["choices"][0]
        assert "".join(entry["token"] for entry in told["logprobs"]["content"]).strip() == told["message"]["content"].strip()
        assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in told["logprobs"]["content"])
        streamed = chunks(client.post(CHAT, json=body("Count to three.", logprobs=True, stream=True)))
        pieces = [chunk["choices"][0] for chunk in streamed]
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == told["message"]["content"]
        assert sum(len(piece["logprobs"]["content"]) for piece in pieces if piece["logprobs"]) == len(
            told["logprobs"]["content"]
        )

        several = [client.post(CHAT, json=body("A word.", n=2, seed=-5, temperature=1, max_tokens=12)).json() for _ in range(2)]
        texts = [[choice["message"]["content"] for choice in each["choices"]] for each in several]
        assert texts[0] == texts[1], "the same seed"
        assert texts[0][0] != texts[0][1], "each choice has its own"

        tool = {"type": "function", "function": {"name": "place", "parameters": SCHEMA}}
        answer = client.post(CHAT, json=body("Call place.", tools=[tool], tool_choice="required"))
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 200:
            call = answer.json()["choices"][0]["message"]["tool_calls"][0]
            assert set(json.loads(call["function"]["arguments"])) == {"city", "people"}
        else:
            assert answer.json()["error"]["param"] == "tools"

        image = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
        sound = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
        for part in (image, sound):
            refused = client.post(CHAT, json={"model": "default", "messages": [{"role": "user", "content": part}]})
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["param"] == "messages"
        embeddings = client.post("/v1/embeddings", json={"model": "default", "input": "a"})
        assert (embeddings.status_code, embeddings.json()["error"]["param"]) == (400, "model")
        prompt = {"model": "default", "prompt": "The sky is", "temperature": 0, "max_tokens": 5, "logprobs": 1, "echo": True}
        completion = client.post("/v1/completions", json=prompt)
        assert completion.status_code == 200, completion.text
        assert completion.json()["usage"]["prompt_tokens"] == 3, "no template, no system message"
        choice = completion.json()["choices"][0]
        assert choice["text"] == "The sky is" + "".join(choice["logprobs"]["tokens"])
        long = client.post("/v1/completions", json={**prompt, "prompt": "word " * 1500})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")

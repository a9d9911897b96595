"""Stock clients ask with documents and memory by two headers, and read what was found beside the vendor's own fields."""

from __future__ import annotations

from typing import Any

import httpx
from anthropic import Anthropic
from openai import OpenAI

from tests.api.test_documents import ready, upload
from tests.sdk.conftest import Site

QUESTION = "When does the keeper trim the violet lamp?"
HEADERS = {"X-Aprendiz-Memory": "true", "X-Aprendiz-Documents": "sdk-sea"}


def _told(found: Any) -> str:
    """The name of the first citation of our extension field."""
    assert found["context"]["turns"] == 0
    return str(found["citations"][0]["name"])


def test_they_parse_whole_answers_and_streams(site: Site) -> None:
    with httpx.Client(base_url=site.url, headers={"x-api-key": site.key}, timeout=30) as client:
        made = upload(client, collection="sdk-sea")
    with httpx.Client(base_url=site.url, headers={"x-api-key": site.read_only}, timeout=30) as client:
        ready(client, made.json()["id"])
    with OpenAI(base_url=site.v1, api_key=site.key, max_retries=0, default_headers=HEADERS) as openai:
        chat = openai.chat.completions.create(model="default", messages=[{"role": "user", "content": QUESTION}])
        assert _told((chat.model_extra or {})["aprendiz"]) == "harbour.md"
        chunks = list(
            openai.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": QUESTION}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        ends = [chunk for chunk in chunks if "aprendiz" in (chunk.model_extra or {})]
        assert [_told((chunk.model_extra or {})["aprendiz"]) for chunk in ends] == ["harbour.md"]
        response = openai.responses.create(model="default", input=QUESTION)
        assert _told((response.model_extra or {})["aprendiz"]) == "harbour.md"
        with openai.responses.stream(model="default", input=QUESTION) as stream:
            for _ in stream:
                pass
            assert _told((stream.get_final_response().model_extra or {})["aprendiz"]) == "harbour.md"
    with Anthropic(base_url=site.url, api_key=site.key, max_retries=0, default_headers=HEADERS) as anthropic:
        message = anthropic.messages.create(model="default", max_tokens=500, messages=[{"role": "user", "content": QUESTION}])
        assert _told((message.model_extra or {})["aprendiz"]) == "harbour.md"
        events = list(
            anthropic.messages.create(
                model="default", max_tokens=500, messages=[{"role": "user", "content": QUESTION}], stream=True
            )
        )
        (last,) = [event for event in events if event.type == "message_delta"]
        assert _told((last.model_extra or {})["aprendiz"]) == "harbour.md"
        with anthropic.messages.stream(
            model="default", max_tokens=500, messages=[{"role": "user", "content": QUESTION}]
        ) as manager:
            assert manager.get_final_message().usage.output_tokens > 0

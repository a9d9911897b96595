"""``langchain-openai`` as its users configure it: an address, a key, a model."""

from __future__ import annotations

import os
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from tests.sdk.conftest import Site


class Place(BaseModel):
    """A city."""

    city: str
    people: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
def chat(site: Site) -> ChatOpenAI:
    return ChatOpenAI(base_url=site.v1, api_key=SecretStr(site.key), model="default", max_retries=0)


def test_invoke_and_stream(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("Repeat."), HumanMessage("one two three")])
    assert answer.content == "one two three"
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (4, 3)
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.id
    pieces = list(chat.stream("one two three", stream_usage=True))
    assert "".join(str(piece.content) for piece in pieces) == "one two three"
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert isinstance(whole, AIMessageChunk)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 3
    assert [each.content for each in chat.batch(["a", "b", "c"])] == ["a", "b", "c"]


async def test_asynchronous(chat: ChatOpenAI) -> None:
    assert (await chat.ainvoke("hello")).content == "hello"
    assert "".join([str(piece.content) async for piece in chat.astream("one two")]) == "one two"


def test_tools(chat: ChatOpenAI) -> None:
    with_tools = chat.bind_tools([weather])
    asked = HumanMessage('call weather {"city": "Rome"}')
    answer = with_tools.invoke([asked])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Rome"})
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert with_tools.invoke([asked, answer, result]).content == "sunny in Rome"
    forced = chat.bind_tools([weather], tool_choice="weather", strict=True, parallel_tool_calls=False).invoke("Lima")
    assert [each["args"] for each in forced.tool_calls] == [{"city": "Lima"}]
    streamed: Any = None
    for piece in with_tools.stream([asked]):
        streamed = piece if streamed is None else streamed + piece
    assert isinstance(streamed, AIMessageChunk)
    assert [each["args"] for each in streamed.tool_calls] == [{"city": "Rome"}]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: ChatOpenAI, method: str) -> None:
    shaped = chat.with_structured_output(Place, method=method)  # type: ignore[arg-type]
    assert shaped.invoke("Rome") == Place(city="Rome", people=0)


def test_the_responses_api(site: Site) -> None:
    chat = ChatOpenAI(base_url=site.v1, api_key=SecretStr(site.key), model="default", max_retries=0, use_responses_api=True)
    assert chat.invoke("one two").text == "one two"
    assert "".join(piece.text for piece in chat.stream("one two")) == "one two"
    asked = HumanMessage('call weather {"city": "Rome"}')
    with_tools = chat.bind_tools([weather])
    answer = with_tools.invoke([asked])
    assert [call["args"] for call in answer.tool_calls] == [{"city": "Rome"}]
    assert with_tools.invoke([asked, answer, weather.invoke(answer.tool_calls[0])]).text == "sunny in Rome"


def test_embeddings(site: Site) -> None:
    """``check_embedding_ctx_length=False`` sends texts. Without it the package sends tokens of another vendor's tokenizer."""
    model = OpenAIEmbeddings(
        base_url=site.v1,  # type: ignore[call-arg]  # mypy does not see that these names are aliases
        api_key=SecretStr(site.key),
        model="default",
        max_retries=0,
        check_embedding_ctx_length=False,
    )
    vectors = model.embed_documents(["a red car", "a blue boat"])
    assert len(vectors) == 2
    assert model.embed_query("a red car") == pytest.approx(vectors[0], abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        model.client.create(model="default", input=[[1, 2], [3]])


def test_errors(site: Site) -> None:
    chat = ChatOpenAI(base_url=site.v1, api_key=SecretStr(site.key), model="gpt-9", max_retries=0)
    with pytest.raises(openai.NotFoundError):
        chat.invoke("hello")
    wrong = ChatOpenAI(base_url=site.v1, api_key=SecretStr("sk-wrong"), model="default", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.invoke("hello")


def test_nothing_is_traced() -> None:
    assert os.environ["LANGSMITH_TRACING"] == "false"

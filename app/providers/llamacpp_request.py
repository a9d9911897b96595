"""What the engine of the provider ``llamacpp`` is asked: our request in the words of llama.cpp's server. No I/O.

Tools and schemas take one of two ways. The engine's own, where the chat template knows tools and the model is free to call,
or where it thinks before it answers (only the engine knows where thinking ends); else a grammar of ours (`llamacpp_grammar`),
which enforces more: the engine lets a model that must call talk first, as long as it likes, and knows no schema beside tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.errors import InvalidRequest
from app.core.settings import Model
from app.core.types import GenerationRequest, Sampling
from app.providers.llamacpp_calls import CallReader, JsonReader
from app.providers.llamacpp_grammar import Grammar, of_schema, of_tools
from app.providers.llamacpp_messages import (
    check_text_only,
    inert_tools,
    introduction_of,
    native_turns,
    plain_turns,
    prompt_of,
)
from app.providers.wire import CHAT, chat_body

_MAX_SEED = 0xFFFF_FFFE
"""llama.cpp takes 32 bits, and all ones mean "choose one"."""
_MAX_DIGITS = 9
_TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")


@dataclass(frozen=True, slots=True)
class Forms:
    """How a loaded model can be held to a form."""

    native_tools: bool
    """Its chat template knows tools."""
    grammars: bool
    """The engine takes grammars of ours (llguidance is built in)."""
    thinks: bool
    """It thinks before it answers."""
    vocabulary: int
    """How many tokens it knows."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body for the engine. ``grammar``: of ours, to be tried before; ``reads_calls``: calls come as text."""

    path: str
    body: dict[str, Any]
    grammar: Grammar | None = None
    reads_calls: bool = False

    def reader(self) -> CallReader | JsonReader | None:
        """What must read the answer, if anything."""
        if self.reads_calls:
            return CallReader()
        return None if self.grammar is None else JsonReader()


def chat(request: GenerationRequest, settings: Model, forms: Forms) -> Asked:
    """A chat. Raises InvalidRequest, with the field, for what this model cannot take."""
    check_text_only(request)
    body = chat_body(request, max_tokens=settings.max_tokens, temperature=settings.temperature)
    sampling = request.sampling
    tools = _tools(sampling)
    forced = tools != [] and sampling.tool_choice is not None and sampling.tool_choice != "auto"
    for name in _TOOL_FIELDS:
        body.pop(name, None)
    form = _form(body.pop("response_format", None))
    if forms.native_tools and not (forms.grammars and tools and (forced or form is not None or "logprobs" in body)):
        body["messages"] = native_turns(request.messages)
        if tools:
            _ask_natively(body, tools, forced, sampling)
            return Asked(CHAT, _fitted(body, forms))
    else:
        # Several calls only where they are asked for: a model that never learned to call repeats itself until its tokens end.
        parallel = sampling.parallel_tool_calls is True and not isinstance(sampling.tool_choice, Mapping)
        introduction = introduction_of(tools, forced=forced, parallel=parallel) if tools else None
        body["messages"] = plain_turns(request.messages, introduction)
        if tools:
            if not forms.grammars:
                raise InvalidRequest(
                    "This model's chat template knows no tools; take another model, or leave tools out.", field="tools"
                )
            grammar = of_tools(tools, forced=forced, parallel=parallel, response_format=form)
            return Asked(CHAT, _fitted(_held(body, grammar), forms), grammar, reads_calls=True)
    if form is not None and forms.grammars and not forms.thinks:
        grammar = of_schema(form)
        return Asked(CHAT, _fitted(_held(body, grammar), forms), grammar)
    if form is not None:
        body["response_format"] = form
    return Asked(CHAT, _fitted(body, forms))


def raw(request: GenerationRequest, settings: Model, forms: Forms) -> Asked:
    """A prompt that is not templated. What it spells is the caller's own affair: there are no roles to speak as."""
    if _form(request.sampling.response_format) is not None or request.sampling.tools:
        raise InvalidRequest("A prompt to go on from takes no tools and no response_format; ask with messages.", field="prompt")
    body = chat_body(request, max_tokens=settings.max_tokens, temperature=settings.temperature)
    for name in ("messages", "response_format", *_TOOL_FIELDS):
        body.pop(name, None)
    body = _fitted(body, forms)
    if body.pop("logprobs", False):
        body["logprobs"] = body.pop("top_logprobs")  # one number there
    return Asked("/v1/completions", {**body, "prompt": prompt_of(request)})


def _tools(sampling: Sampling) -> list[dict[str, Any]]:
    """The tools that the model may call: none where the choice is ``none``, one where it names one."""
    choice = sampling.tool_choice
    if choice == "none":
        return []
    tools = inert_tools(sampling.tools)
    strict = {tool["function"]["name"]: tool["function"].get("strict") for tool in sampling.tools}
    for tool in tools:
        if strict[tool["function"]["name"]]:
            tool["function"]["strict"] = True
    if isinstance(choice, Mapping):
        name = choice.get("function", {}).get("name")
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise InvalidRequest("tool_choice names a function that is not among the tools.", field="tool_choice")
    return tools


def _ask_natively(body: dict[str, Any], tools: list[dict[str, Any]], forced: bool, sampling: Sampling) -> None:
    body["tools"] = tools
    if forced:
        body["tool_choice"] = "required"  # llama.cpp takes words only: one function, and required, is the same
    if sampling.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = sampling.parallel_tool_calls
    if "logprobs" in body:
        raise InvalidRequest("This model tells no logprobs beside tools; leave one out.", field="logprobs")
    if sampling.response_format is not None and _form(sampling.response_format) is not None:
        raise InvalidRequest("This model takes no response_format beside tools; leave one out.", field="response_format")


def _form(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if response_format is None or response_format.get("type") == "text" else response_format


def _held(body: dict[str, Any], grammar: Grammar) -> dict[str, Any]:
    """``reasoning_format``: the answer is all text to the engine, wherever the template would have had thinking."""
    return {**body, "grammar": grammar.text, "reasoning_format": "none"}


def _fitted(body: dict[str, Any], forms: Forms) -> dict[str, Any]:
    """``body`` with what this engine needs told, whatever the shape."""
    for token in body.get("logit_bias", ()):  # the engine would pass over what it does not know
        if not (token.isascii() and token.isdecimal() and len(token) <= _MAX_DIGITS and int(token) < forms.vocabulary):
            raise InvalidRequest(f"logit_bias: this model's tokens are 0 to {forms.vocabulary - 1}.", field="logit_bias")
    if body.get("stop"):
        body["verbose"] = True  # otherwise the engine does not tell which stop word ended the answer
    seed = body.get("seed")
    if seed is not None:
        body["seed"] = seed % _MAX_SEED
    if body.get("top_logprobs") == 0:
        body["top_logprobs"] = 1  # llama.cpp tells no probability at all where no alternative is asked for
    body["return_progress"] = True  # otherwise the engine notices only at the first token that the client has gone
    body["cache_prompt"] = True
    body["lora"] = []  # said each time: a request without the field would reuse another's adapted cache
    return body

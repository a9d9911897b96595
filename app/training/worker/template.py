"""From a row's messages to tokens: the prompt exactly as it is served, then the answer and what ends its turn.

`TrainingFormat.render` is the only way from messages to tokens for training and for scoring; the prompt comes from the same
`ChatFormat` that serves, and for a GGUF base with the messages as the llama.cpp provider words them. The loss is for the
answer alone. Not a repair shop: where a template writes a finished conversation otherwise than prompt and answer one after the
other, there is nothing sound to train on, and it says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.core.errors import InvalidRequest
from app.core.types import Message
from app.providers.llamacpp_messages import inert_tools, introduction_of, native_turns, plain_turns
from app.providers.workers.hf_chat import ChatFormat
from app.providers.workers.hf_request import BadRequest
from app.training.worker.batch import TokenRow
from app.training.worker.job import TrainingFailed

_PROBE: Final = ([{"role": "user", "content": "Say hi."}], {"role": "assistant", "content": "hi there"})
_UNSTABLE = (
    "The model's chat template cannot be trained on: it writes a finished conversation otherwise than prompt and answer one "
    "after the other. Give the model another chat template."
)


class RowRefused(Exception):
    """This row makes no sound tokens; ``reason`` is a short phrase to be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TrainingFormat:
    """Rows for one tokenizer. To be used in the main thread only (the template's time limit is a signal).

    Args:
        tokenizer: of the base.
        ends: tokens that end an answer.
        template: in place of the tokenizer's own.
        wire: word messages as the llama.cpp provider does: tools as text where the template knows none.

    Raises:
        TrainingFailed: no template that could be trained on, or no token that ends an answer.
        LoadRefused: the template cannot be rendered at all.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], *, template: str | None = None, wire: bool = False) -> None:
        if template is not None:
            tokenizer.chat_template = template
        self._tokenizer = tokenizer
        self._ends = ends
        self._chat = ChatFormat(tokenizer)
        self._wire = wire
        self._native = self._chat.template is not None and re.search(r"\btools\b", self._chat.template) is not None
        self._end = self._usual_end()
        self.template_hash = self._chat.template_hash

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The tokens up to where the answer begins. Raises RowRefused."""
        return self._encode(*self._worded(messages, tools))

    def render(
        self, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()
    ) -> TokenRow:
        """Prompt and answer; what is learnt is the answer and the token that ends its turn.

        Raises:
            RowRefused: the template does not take these messages, or not in this way.
        """
        worded, told = self._worded(messages, tools)
        prompt = self._encode(worded, told)
        spoken = self._answer(prompt, worded, told, self._worded_answer(answer))
        return TokenRow([*prompt, *spoken], [False] * len(prompt) + [True] * len(spoken))

    def _usual_end(self) -> int:
        """The end of turn that the template writes, else one that the model names; proves that the template can be used."""
        messages, answer = _PROBE
        if self._chat.template is None:
            return self._eos()
        try:
            prompt, whole = self._chat.encode([*messages]), self._chat.encode([*messages, answer], whole=True)
        except BadRequest:
            raise TrainingFailed("The model's chat template does not take a question and its answer.") from None
        if whole[: len(prompt)] != prompt or answer["content"] not in self._tokenizer.decode(whole[len(prompt) :]):
            raise TrainingFailed(_UNSTABLE)
        return next((token for token in whole[len(prompt) :] if token in self._ends), None) or self._eos()

    def _eos(self) -> int:
        if self._tokenizer.eos_token_id is None:
            raise TrainingFailed("The model has no token that ends an answer, so it could never learn to stop.")
        return int(self._tokenizer.eos_token_id)

    def _answer(
        self, prompt: list[int], messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, answer: dict[str, Any]
    ) -> list[int]:
        if self._chat.template is None:
            return self._alone(" " + str(answer["content"]))
        whole = self._encode([*messages, answer], tools, whole=True)
        if whole[: len(prompt)] != prompt:
            # Letters on both sides of the border can make one token; a model that is being served sees them apart.
            same = next((at for at, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
            if answer.get("tool_calls") or same < len(prompt) - 1:
                raise RowRefused("the chat template writes it otherwise once it is answered")
            return self._alone(str(answer["content"]))
        spoken = whole[len(prompt) :]
        end = next((at for at, token in enumerate(spoken) if token in self._ends), None)
        return [*spoken, self._end] if end is None else spoken[: end + 1]

    def _alone(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self._end]

    def _encode(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, whole: bool = False) -> list[int]:
        try:
            return self._chat.encode(messages, tools=tools, whole=whole)
        except BadRequest:
            raise RowRefused("the chat template does not take its messages") from None

    def _worded(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages and tools as the template gets them when they are served."""
        if not self._wire:
            if tools and not self._native:
                raise RowRefused("the chat template knows no tools")
            return [dict(each) for each in messages], [dict(each) for each in tools] or None
        try:
            told = inert_tools(tools)
        except (InvalidRequest, KeyError, TypeError, AttributeError):
            raise RowRefused("its tools cannot be told to the model") from None
        turns = [_turn(each) for each in messages]
        if self._native:
            return [_with_objects(turn) for turn in native_turns(turns)], told or None
        introduction = introduction_of(told, forced=False, parallel=False) if told else None
        return plain_turns(turns, introduction), None

    def _worded_answer(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        if self._wire and not self._native and answer.get("tool_calls"):
            return plain_turns([_turn(answer)], None)[0]
        return dict(answer)


def _turn(message: Mapping[str, Any]) -> Message:
    """A row's message as the service had it: arguments of calls as JSON text."""
    calls = []
    for call in message.get("tool_calls", ()):
        function = dict(call.get("function", {}))
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        calls.append({**call, "function": function})
    named = {key: message[key] for key in ("name", "tool_call_id") if message.get(key)}
    return Message(role=message["role"], content=message.get("content") or "", tool_calls=tuple(calls), **named)


def _with_objects(turn: dict[str, Any]) -> dict[str, Any]:
    """Templates want the arguments of calls as objects."""
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            arguments = {"text": call["function"]["arguments"]}
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**turn, "tool_calls": calls}

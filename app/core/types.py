"""The words that all layers share: who calls, what is asked, what comes back.

A provider yields `Event`s; a whole answer is a fold over them (`fold`). Nothing here does any I/O. Events are msgspec structs
and not dataclasses, because there is one for each token: they are made five times as fast.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any, Literal

from msgspec import Struct

from app.core.blocks import to_part
from app.core.errors import UpstreamError

Role = Literal["admin", "user"]
Scope = Literal["predict", "feedback", "read", "admin"]
"""What an API key may do. ``read``: GET one's own things; ``admin``: needs an admin's key. A session has all of its role."""

ALL_SCOPES: tuple[Scope, ...] = ("predict", "feedback", "read", "admin")

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call, as proved by a credential. The same for every carrier (cookie, Bearer, x-api-key)."""

    user_id: str
    username: str
    role: Role
    scopes: frozenset[Scope]
    via: Literal["session", "token", "key"]
    session_id: str | None = None
    key_id: str | None = None

    @property
    def is_admin(self) -> bool:
        """Whether admin routes are open: an admin's session, or an admin's key that carries the ``admin`` scope."""
        return self.role == "admin" and "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``content``: text, or the list of content parts of the OpenAI format, or None beside ``tool_calls``.

    A part may also carry ``cache_control`` (Anthropic's marker of a cacheable prefix). ``reasoning``: thinking blocks of an
    earlier assistant turn, as Anthropic's format has them, to be handed back unchanged; other formats leave them out.

    Parts may also be Anthropic's blocks ``document`` and ``search_result``, as they came. Of a tool's result, ``is_error``
    says that the tool failed and ``cache_control`` marks all of it; the OpenAI format knows neither.
    """

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    reasoning: tuple[Mapping[str, Any], ...] = ()
    is_error: bool = False
    cache_control: Mapping[str, Any] | None = None

    def to_wire(self) -> dict[str, Any]:
        """This message in the OpenAI chat format; parts keep their ``cache_control``, which readers of that format skip."""
        content = [to_part(part) for part in self.content] if isinstance(self.content, list) else self.content
        wire: dict[str, Any] = {"role": self.role, "content": content}
        if self.name is not None:
            wire["name"] = self.name
        if self.tool_calls:
            wire["tool_calls"] = [
                {name: value for name, value in call.items() if name != "cache_control"} for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            wire["tool_call_id"] = self.tool_call_id
        return wire


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. None leaves the choice to the version's defaults. Bounds are checked in ``api``."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    logprobs: int | None = None
    response_format: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_k: int | None = None
    reasoning_effort: str | None = None
    """``none``, ``minimal``, ``low``, ``medium``, ``high`` or ``xhigh``, for models that think."""
    thinking: Mapping[str, Any] | None = None
    """Anthropic's field of that name, as it came: ``{"type": "enabled", "budget_tokens": n}``, ``{"type": "adaptive"}``, …"""


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the answer that people have approved for it, to be shown to a model with a similar question.

    ``id``: of the feedback that it was made of.
    """

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a caller's own document, as it is shown to a model and cited in the answer. ``text`` is data, never an order.

    ``place``: where in the source it stands: ``page``, ``section``, ``line`` or ``row``, whichever the format has.
    ``score``: from 0 to 1, the higher the better; comparable within one search only.
    """

    id: str
    document_id: str
    name: str
    collection: str
    text: str
    score: float
    place: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecalledFact:
    """Something that the caller said once and agreed to have kept. ``said_at``: when."""

    id: str
    text: str
    said_at: datetime


@dataclass(frozen=True, slots=True)
class Context:
    """What was found for one call, the most relevant first. ``app.memory`` finds it, ``app.models`` makes it fit and shows it.

    ``summary``: of the turns before those that are recalled whole. ``left_out``: what was found and is not shown, by kind:
    ``turns``, ``facts``, ``passages``. Nothing is left out without being counted here.
    """

    facts: tuple[RecalledFact, ...] = ()
    passages: tuple[Passage, ...] = ()
    summary: str | None = None
    turns: int = 0
    """Earlier turns that are recalled whole; they stand in ``messages``, as `GenerationRequest.recalled` says."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    private: bool = False
    """An answer among the recalled turns was made with facts or documents: this one may repeat what stood in them."""
    notes: tuple[str, ...] = ()
    """What the caller should know: that the embedder was away, say, so that words alone were searched."""


CachePolicy = Literal["auto", "use", "refresh", "off"]
"""``auto``: answers that would repeat anyway; ``use``: the caller accepts any; ``refresh``: ask anew, and keep; ``off``."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call as every front door (``/predict``, ``/v1``, WebSocket, CLI) hands it to ``models``.

    ``model``: an alias, a route, ``provider/name`` or None for ``default``. ``messages`` are structured, before templating.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    conversation_id: str | None = None
    request_id: str = ""
    raw: bool = False
    """The one user message is a prompt to go on from, not to be templated (``/v1/completions``)."""
    cache: CachePolicy = "auto"
    max_age_s: float | None = None
    """Oldest cached answer that the caller accepts; None: whatever the cache still holds."""
    prediction_id: str | None = None
    """The id that the prediction shall have (UUIDv7); None: ``models`` makes one."""
    whole: bool = False
    """The caller wants the answer in one piece: a provider may fetch it so, which is cheaper than a stream. It need not."""
    door: Mapping[str, Any] | None = None
    """What the door needs to show the answer again (``/v1/responses``); stored with the input, read by nobody else."""
    truncate: bool = False
    """Where the prompt does not fit, leave out the oldest messages; else the call is refused."""
    examples: tuple[Example, ...] = ()
    """What ``models`` found for this question, the most similar last; ``messages`` stay the caller's own."""
    no_examples: bool = False
    """The caller wants none."""
    memory: bool = False
    """Recall the caller's facts, and look for new ones in what is said (``memory: true``, ``X-Aprendiz-Memory``)."""
    documents: tuple[str, ...] | None = None
    """Search the caller's documents: these collections, or all of them where it is empty; None: no documents."""
    recalled: tuple[int, ...] = ()
    """How many messages each recalled turn of the conversation has, oldest first; they follow the system messages."""
    context: Context | None = None
    """What was found for this call; ``messages`` stay the caller's own (and the conversation's turns)."""


class Usage(Struct, frozen=True):
    """Token counts as the model's own tokenizer gives them.

    ``cached_tokens`` (found in a prefix cache) and ``cache_write_tokens`` (written to a vendor's) are parts of
    ``prompt_tokens``; ``reasoning_tokens`` are part of ``completion_tokens``.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class TextDelta(Struct, frozen=True):
    """The next piece of the answer's text; never empty."""

    text: str


class ReasoningDelta(Struct, frozen=True):
    """The next piece of a model's visible thinking; not part of the answer's text.

    ``signature`` closes a thinking block of Anthropic's; ``redacted`` is one that came encrypted. With either, ``text`` is
    empty. Whoever continues the conversation hands both back.
    """

    text: str
    signature: str | None = None
    redacted: str | None = None


class ToolCallDelta(Struct, frozen=True):
    """A piece of tool call number ``index``: the id and name come first, the JSON arguments in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class TokenLogprobs(Struct, frozen=True):
    """Log-probabilities of the tokens of the last `TextDelta`, in the OpenAI ``logprobs.content`` form."""

    content: tuple[Mapping[str, Any], ...]


class Finished(Struct, frozen=True):
    """The last event of a whole answer. A stream that ends without it was cut, and that is an error."""

    reason: FinishReason
    usage: Usage
    stop_sequence: str | None = None
    """Which of ``Sampling.stop`` ended it, where the provider tells."""


Event = TextDelta | ReasoningDelta | ToolCallDelta | TokenLogprobs | Finished


BlockKind = Literal["thinking", "text", "call"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what `fold` makes of a stream of events."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    reasoning: str = ""
    """All visible thinking, as text."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """One entry a token, in the OpenAI ``logprobs.content`` form; empty unless asked for."""
    thinking: tuple[Mapping[str, Any], ...] = ()
    """The thinking blocks in Anthropic's form, for `Message.reasoning` of a later turn."""
    stop_sequence: str | None = None
    order: tuple[tuple[BlockKind, int], ...] = ()
    """Its blocks as they came: the number of a thinking block or tool call; of a piece of text, where in ``text`` it begins."""


async def fold(events: AsyncIterable[Event]) -> Answer:
    """Folds a stream into a whole answer; streaming and non-streaming share the one generator.

    Raises:
        UpstreamError: the stream ended without `Finished`.
    """
    folder = Folder()
    async for event in events:
        folder.add(event)
    return folder.answer()


class Folder:
    """The fold as an object, for callers that also pass each event on."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thinking: list[dict[str, Any]] = []
        self._logprobs: list[Mapping[str, Any]] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._order: list[tuple[BlockKind, int]] = []
        self._open: BlockKind | None = None
        self._finished: Finished | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def finished(self) -> Finished | None:
        """The closing event, once it has come."""
        return self._finished

    def add(self, event: Event) -> None:
        """Takes the next event."""
        match event:
            case TextDelta(text):
                if self._open != "text":
                    self._begin("text", sum(map(len, self._text)))
                self._text.append(text)
            case ReasoningDelta():
                self._add_thinking(event)
            case ToolCallDelta():
                self._add_call(event)
            case TokenLogprobs(content):
                self._logprobs.extend(content)
            case Finished():
                self._finished = event

    def _begin(self, kind: BlockKind, where: int) -> None:
        self._open = kind
        self._order.append((kind, where))

    def _add_thinking(self, delta: ReasoningDelta) -> None:
        if delta.redacted is not None or self._open != "thinking":
            self._begin("thinking", len(self._thinking))
            self._thinking.append({"type": "thinking", "thinking": ""})
        if delta.redacted is not None:
            self._thinking[-1] = {"type": "redacted_thinking", "data": delta.redacted}
            self._open = None
            return
        self._thinking[-1]["thinking"] += delta.text
        if delta.signature is not None:
            self._thinking[-1]["signature"] = delta.signature
            self._open = None

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index not in self._calls:
            self._begin("call", delta.index)
        call = self._calls.setdefault(delta.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        if delta.id:
            call["id"] = delta.id
        if delta.name:
            call["function"]["name"] += delta.name
        call["function"]["arguments"] += delta.arguments

    def answer(self) -> Answer:
        """The whole answer. Raises UpstreamError where the closing event never came."""
        if self._finished is None:
            raise UpstreamError("The answer was cut off before its end. Try again.")
        numbers = sorted(self._calls)
        return Answer(
            text=self.text,
            finish_reason=self._finished.reason,
            usage=self._finished.usage,
            reasoning="".join(block.get("thinking", "") for block in self._thinking),
            tool_calls=tuple(self._calls[index] for index in numbers),
            logprobs=tuple(self._logprobs),
            thinking=tuple(self._thinking),
            stop_sequence=self._finished.stop_sequence,
            order=tuple((kind, numbers.index(at) if kind == "call" else at) for kind, at in self._order),
        )


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to embed. ``model`` as in `GenerationRequest`; ``dimensions``: shorter vectors, for models that can."""

    inputs: tuple[str, ...]
    model: str | None = None
    dimensions: int | None = None
    request_id: str = ""
    kind: Literal["query", "passage"] = "query"
    """For models that tell a question from a text to be found (``input_type`` on the wire)."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector a text, in their order, all of one length; ``prompt_tokens`` over all texts."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What an admin asks for with ``POST /model``: ``{provider, model, device?}`` (M1 section 9).

    ``provider``: a kind that runs here (``llamacpp``, ``hf``, ``echo``) or an upstream (``openai``, ``claude``, or one of
    ``providers.upstreams``).
    """

    provider: str
    model: str
    device: str = "auto"
    adapter: str | None = None
    """Name of an adapter of ours on top of the base, or None."""

    @property
    def name(self) -> str:
        """``provider/model``, to the letter: it may hold a path, so it is not for callers."""
        return f"{self.provider}/{self.model}"

    @property
    def public_name(self) -> str:
        """``provider/model`` as callers, logs and metrics see it. Of a path only the last part: paths are private."""
        is_path = self.model.startswith(("/", ".", "~")) or "\\" in self.model
        return f"{self.provider}/{PurePath(self.model).name or self.model}" if is_path else self.name


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """What really answers: base weights, adapter and chat template, each by SHA-256 hex (or None).

    ``id`` is the first 16 hex digits of the SHA-256 over the three, with the provider's name: equal parts, equal id.
    """

    id: str
    provider: str
    model: str
    base_hash: str | None
    adapter_hash: str | None
    template_hash: str | None
    context_tokens: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class EngineState(enum.StrEnum):
    """Where an engine process stands; also the label of the metric ``aprendiz_engine_state``."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"

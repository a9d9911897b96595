"""``POST /v1/chat/completions``: answers and streams as OpenAI's API writes them.

The chunks of a stream are written by hand around the encoded text: what is the same in all of them is made once a stream.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.routing import Route

from app.api import sse
from app.api.door import Caller, Door, Headers, Order
from app.api.problems import vendor_body
from app.api.remembered import citations_of, context_of
from app.api.v1.chat_bodies import CHAT, ChatBody
from app.api.v1.common import AprendizOut, StreamOptionsBody, UsageOut, limit_headers, model_name, read, seed_of, usage_out
from app.api.v1.describe import Operation
from app.api.vendor_errors import openai
from app.core.ids import uuid7
from app.core.types import Event, GenerationRequest, ReasoningDelta, TextDelta, TokenLogprobs, ToolCallDelta
from app.security.tokens import sign_feedback_token

if TYPE_CHECKING:
    from app.core.records import FactRecord, PredictionRecord
    from app.core.settings import Settings
    from app.core.types import Context
    from app.models.generation import Completed, Generation
    from app.security.rate_limit import RateState

PATH: Final = "/v1/chat/completions"
DONE: Final = b"data: [DONE]\n\n"
encode: Final = msgspec.json.Encoder().encode


class MessageOut(Struct, frozen=True, kw_only=True):
    """What the model said. ``reasoning_content``: its visible thinking, where there is any."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    annotations: tuple[Any, ...] = ()
    tool_calls: Sequence[Mapping[str, Any]] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class LogprobsOut(Struct, frozen=True):
    """One entry for each token."""

    content: Sequence[Mapping[str, Any]]
    refusal: None = None


class ChoiceOut(Struct, frozen=True):
    """One answer. ``prediction_id`` names it for feedback where there are several."""

    index: int
    message: MessageOut
    finish_reason: str
    logprobs: LogprobsOut | None = None
    prediction_id: str | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer. ``id`` is the prediction's (that of the first choice) and works for feedback at once."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChoiceOut]
    usage: UsageOut
    system_fingerprint: str
    aprendiz: AprendizOut
    service_tier: Literal["default"] | UnsetType = UNSET


class ChunkShape:
    """What the answers of both of OpenAI's completions have in common; see `app.api.door.Shape`.

    Args:
        ids: of the predictions, one for each choice.
        options: what was asked of a stream.
    """

    heartbeat = sse.HEARTBEAT

    def __init__(self, settings: Settings, ids: Sequence[str], options: StreamOptionsBody | None) -> None:
        self._settings = settings
        self._ids = ids
        self._with_usage = options is not None and options.include_usage is True
        self._began = time.monotonic()
        self._head = self._tail = b""

    def headers(self, state: RateState) -> Headers:
        """See `Shape.headers`."""
        spent = int((time.monotonic() - self._began) * 1000)
        return [*limit_headers(state), (b"openai-processing-ms", b"%d" % spent)]

    def failure(self, error: BaseException) -> bytes:
        """See `Shape.failure`. Without the end that a whole stream has."""
        return b"data: " + encode(vendor_body(error, openai)) + b"\n\n"

    def begin(self, kind: str, generation: Generation, **more: str) -> None:
        """Makes what all chunks begin and end with."""
        fields = {
            "id": self._ids[0],
            "object": kind,
            "created": int(time.time()),
            "model": generation.model,
            "system_fingerprint": generation.version,
            **more,
        }
        self._head = b"data: " + encode(fields)[:-1] + b',"choices":['
        # the vendor writes "usage" in all chunks of a stream that ends with it
        self._tail = b'],"usage":null}\n\n' if self._with_usage else b"]}\n\n"

    def closing(self, choice: Any, completed: Completed) -> bytes:
        """The last chunk of one choice."""
        extra = b',"aprendiz":' + encode(extras_of(completed, self._settings))
        return self._head + encode(choice) + b"]" + extra + self._tail[1:]

    def end(self, usage: UsageOut) -> bytes:
        """What comes after all choices: the tokens if asked for, and the end."""
        return (self._head + b'],"usage":' + encode(usage) + b"}\n\n" if self._with_usage else b"") + DONE


class ChatShape(ChunkShape):
    """Chat completions."""

    def __init__(self, settings: Settings, ids: Sequence[str], body: ChatBody) -> None:
        super().__init__(settings, ids, body.stream_options)
        self._with_logprobs = bool(body.logprobs)
        self._alternatives = body.top_logprobs or 0
        self._tier = body.service_tier is not None
        self._texts: list[bytes] = []
        self._waiting: dict[int, str] = {}

    def whole(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.whole`."""
        first = answers[0].prediction
        return encode(
            ChatCompletion(
                id=first.id,
                created=int(first.created_at.timestamp()),
                model=f"{first.provider}/{first.model}",
                choices=[self._choice(index, each, several=len(answers) > 1) for index, each in enumerate(answers)],
                usage=usage_out([each.answer.usage for each in answers]),
                system_fingerprint=first.version,
                aprendiz=extras_of(answers[0], self._settings),
                service_tier="default" if self._tier else UNSET,
            )
        )

    def first(self, generation: Generation) -> bytes:
        """See `Shape.first`: the role of each choice."""
        tier = {"service_tier": "default"} if self._tier else {}
        self.begin("chat.completion.chunk", generation, **tier)
        self._texts = [self._head + b'{"index":%d,"delta":{"content":' % index for index in range(len(self._ids))]
        opening = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, opening) for index in range(len(self._ids)))

    def piece(self, choice: int, events: Sequence[Event]) -> bytes:
        """See `Shape.piece`."""
        if self._with_logprobs:
            return b"".join(self._with_probabilities(choice, events))
        return b"".join([self._event(choice, event) for event in events])

    def last(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.last`: how each choice ended, the tokens if asked for, and the end."""
        found = [self._flush(index) for index in range(len(answers))]
        for index, each in enumerate(answers):
            choice: dict[str, Any] = {
                "index": index,
                "delta": {},
                "logprobs": None,
                "finish_reason": each.answer.finish_reason,
            }
            if len(answers) > 1:
                choice["prediction_id"] = each.prediction.id
            found.append(self.closing(choice, each))
        return b"".join([*found, self.end(usage_out([each.answer.usage for each in answers]))])

    def _choice(self, index: int, each: Completed, *, several: bool) -> ChoiceOut:
        answer = each.answer
        calls = [
            call if call["id"] else {**call, "id": call_id(each.prediction.id, i)} for i, call in enumerate(answer.tool_calls)
        ]
        return ChoiceOut(
            index=index,
            message=MessageOut(
                content=answer.text if answer.text or not calls else None,
                tool_calls=calls or UNSET,
                reasoning_content=answer.reasoning or UNSET,
            ),
            finish_reason=answer.finish_reason,
            logprobs=LogprobsOut(self._entries(answer.logprobs)) if self._with_logprobs else None,
            prediction_id=each.prediction.id if several else UNSET,
        )

    def _event(self, choice: int, event: Event) -> bytes:
        match event:
            case TextDelta(text):
                return self._texts[choice] + encode(text) + b'},"logprobs":null,"finish_reason":null}' + self._tail
            case ReasoningDelta(text) if text:
                return self._chunk(choice, {"reasoning_content": text})
            case ToolCallDelta():
                return self._chunk(choice, {"tool_calls": [self._call(choice, event)]})
        return b""

    def _with_probabilities(self, choice: int, events: Sequence[Event]) -> list[bytes]:
        """Each text waits for the probabilities of its tokens, which come right after it, and goes out with them."""
        found: list[bytes] = []
        for event in events:
            if isinstance(event, TokenLogprobs):
                text = self._waiting.pop(choice, "")
                found.append(self._chunk(choice, {"content": text}, {"content": self._entries(event.content), "refusal": None}))
                continue
            found.append(self._flush(choice))
            if isinstance(event, TextDelta):
                self._waiting[choice] = event.text
            else:
                found.append(self._event(choice, event))
        return found

    def _entries(self, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """``entries`` with as many alternatives as were asked for: an engine may tell more."""
        return [{**entry, "top_logprobs": (entry.get("top_logprobs") or [])[: self._alternatives]} for entry in entries]

    def _flush(self, choice: int) -> bytes:
        text = self._waiting.pop(choice, "")
        return self._event(choice, TextDelta(text)) if text else b""

    def _call(self, choice: int, delta: ToolCallDelta) -> dict[str, Any]:
        if delta.name is None and delta.id is None:
            return {"index": delta.index, "function": {"arguments": delta.arguments}}
        return {
            "index": delta.index,
            "id": delta.id or call_id(self._ids[choice], delta.index),
            "type": "function",
            "function": {"name": delta.name or "", "arguments": delta.arguments},
        }

    def _chunk(self, choice: int, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None) -> bytes:
        body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._head + encode(body) + self._tail


def extras_of(completed: Completed, settings: Settings) -> AprendizOut:
    """What the vendor's format has no place for."""
    return extras(completed.prediction, settings, completed.context, completed.proposed)


def extras(
    prediction: PredictionRecord, settings: Settings, context: Context | None = None, proposed: Sequence[FactRecord] = ()
) -> AprendizOut:
    """The same of a stored answer, of whose context only ids are kept."""
    return AprendizOut(
        version=prediction.version,
        cached=prediction.cached,
        fallback=prediction.fallback,
        feedback_token=sign_feedback_token(prediction.id, settings.security),
        examples=len(prediction.input.get("examples", ())),
        citations=citations_of(prediction, context),
        context=context_of(context, proposed),
    )


def call_id(prediction_id: str, index: int) -> str:
    """The id of a tool call whose provider gave none."""
    return f"call_{prediction_id.replace('-', '')}_{index}"


async def parse(body: bytes, caller: Caller) -> Order:
    """The order in a body. Raises InvalidRequest."""
    wanted = read(body, CHAT)
    wanted.check()
    sampling = wanted.to_sampling()
    first = GenerationRequest(
        messages=wanted.to_messages(),
        model=model_name(wanted.model),
        sampling=sampling,
        request_id=caller.request_id,
        prediction_id=uuid7(),
        whole=not wanted.stream,
    )
    others = (
        dataclasses.replace(
            first, prediction_id=uuid7(), sampling=dataclasses.replace(sampling, seed=seed_of(sampling.seed, choice))
        )
        for choice in range(1, wanted.n or 1)
    )
    requests = (first, *others)
    ids = [str(request.prediction_id) for request in requests]
    return Order(requests, ChatShape(caller.services.settings, ids, wanted), stream=bool(wanted.stream))


OPERATION: Final = Operation(
    method="post",
    path=PATH,
    operation_id="chat_completions",
    summary="Ask, in OpenAI's format",
    description="OpenAI's chat completions: messages, tools, `response_format`, `n`, `logprobs`, whole or with `stream: true` "
    "as server-sent events. What has no effect here is accepted, what cannot be kept is refused by name. The `id` is the "
    "prediction's and can be rated at once.",
    body=ChatBody,
    answer=(ChatCompletion,),
    stream='data: {"id":"01934f…","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Paris"},…}]}\n\n'
    "data: [DONE]\n\n",
    examples={
        "text": {"model": "default", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
        "stream": {
            "model": "default",
            "messages": [{"role": "user", "content": "Say hello."}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
)


def route() -> Route:
    """The route, for `app.api.v1.routes`."""
    return Route(PATH, Door(parse), methods=["POST"], name="chat_completions")

"""``POST /v1/completions``: the older shape of OpenAI's API, where a model goes on from a bare prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.routing import Route

from app.api.door import Caller, Door, Order
from app.api.v1.chat import ChunkShape, encode, extras
from app.api.v1.common import (
    MAX_TEXT,
    AprendizOut,
    Choices,
    Label,
    LogitBias,
    ModelName,
    Penalty,
    Seed,
    Stop,
    StreamOptionsBody,
    Temperature,
    Tokens,
    TopK,
    TopP,
    UsageOut,
    check_storable,
    model_name,
    read,
    refuse,
    seed_of,
    stop_words,
    usage_of_prompts,
)
from app.api.v1.describe import Operation
from app.core.errors import InvalidRequest
from app.core.ids import uuid7
from app.core.types import Event, GenerationRequest, Message, Sampling, TextDelta, TokenLogprobs

if TYPE_CHECKING:
    from app.core.settings import Settings
    from app.models.generation import Completed, Generation

PATH: Final = "/v1/completions"
_MAX_PROMPTS: Final = 16
_MAX_CHOICES: Final = 32
_DEFAULT_TOKENS: Final = 16
Prompt = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]


class CompletionBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/completions`` takes. Texts, not tokens: each model has its own."""

    model: ModelName
    prompt: Prompt | Annotated[list[Prompt], Meta(min_length=1, max_length=_MAX_PROMPTS)]
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    suffix: Any = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    logit_bias: LogitBias | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    user: Label | None = None

    @property
    def prompts(self) -> list[str]:
        """All prompts; their choices come in this order."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def check(self) -> None:
        """Raises InvalidRequest for what the types alone do not refuse."""
        if self.suffix not in (None, ""):
            refuse("suffix", "Put all of the text into the prompt.")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest("best_of must be equal to n: all answers are returned.", field="best_of")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options goes with stream: true.", field="stream_options")
        if len(self.prompts) * (self.n or 1) > _MAX_CHOICES:
            raise InvalidRequest(f"prompt times n gives more than {_MAX_CHOICES} answers.", field="prompt")
        for index, text in enumerate(self.prompts):
            check_storable(text, field="prompt" if isinstance(self.prompt, str) else f"prompt[{index}]")

    def to_sampling(self, choice: int) -> Sampling:
        """How to sample choice number ``choice`` of a prompt."""
        return Sampling(
            max_tokens=_DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=stop_words(self.stop),
            seed=seed_of(self.seed, choice),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or None,
            logprobs=self.logprobs,
        )


class TextLogprobsOut(Struct, frozen=True):
    """The older form of probabilities: lists side by side, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoiceOut(Struct, frozen=True, kw_only=True):
    """One answer. ``prediction_id`` names it for feedback."""

    text: str
    index: int
    logprobs: TextLogprobsOut | None
    finish_reason: str | None
    prediction_id: str


class TextCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer. ``id`` is the prediction's, that of the first choice."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoiceOut]
    usage: UsageOut
    system_fingerprint: str
    aprendiz: AprendizOut


class CompletionShape(ChunkShape):
    """Completions of bare prompts."""

    def __init__(self, settings: Settings, ids: Sequence[str], body: CompletionBody) -> None:
        super().__init__(settings, ids, body.stream_options)
        self._n = body.n or 1
        self._alternatives = body.logprobs
        # With ``echo`` each answer begins with its prompt.
        self._before = [prompt if body.echo else "" for prompt in body.prompts for _ in range(self._n)]
        self._offsets = [len(text) for text in self._before]
        self._waiting: dict[int, str] = {}

    def whole(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.whole`."""
        first = answers[0].prediction
        return encode(
            TextCompletion(
                id=first.id,
                created=int(first.created_at.timestamp()),
                model=f"{first.provider}/{first.model}",
                choices=[self._choice(index, each) for index, each in enumerate(answers)],
                usage=self._usage(answers),
                system_fingerprint=first.version,
                aprendiz=extras(first, self._settings),
            )
        )

    def first(self, generation: Generation) -> bytes:
        """See `Shape.first`: nothing, or the prompts where they are to be said again."""
        self.begin("text_completion", generation)
        return b"".join(self._chunk(index, text) for index, text in enumerate(self._before) if text)

    def piece(self, choice: int, events: Sequence[Event]) -> bytes:
        """See `Shape.piece`."""
        found: list[bytes] = []
        for event in events:
            if isinstance(event, TokenLogprobs) and self._alternatives is not None:
                text = self._waiting.pop(choice, "")
                found.append(self._chunk(choice, text, self._logprobs(choice, event.content)))
            elif isinstance(event, TextDelta):
                found.append(self._flush(choice))
                if self._alternatives is None:
                    found.append(self._chunk(choice, event.text))
                else:
                    self._waiting[choice] = event.text  # the probabilities of its tokens come right after it
        return b"".join(found)

    def last(self, answers: Sequence[Completed]) -> bytes:
        """See `Shape.last`: how each choice ended, the tokens if asked for, and the end."""
        found = [self._flush(index) for index in range(len(answers))]
        for index, each in enumerate(answers):
            choice = TextChoiceOut(
                text="", index=index, logprobs=None, finish_reason=_reason(each), prediction_id=each.prediction.id
            )
            found.append(self.closing(choice, each))
        return b"".join([*found, self.end(self._usage(answers))])

    def _choice(self, index: int, each: Completed) -> TextChoiceOut:
        logprobs = None if self._alternatives is None else self._logprobs(index, each.answer.logprobs)
        return TextChoiceOut(
            text=self._before[index] + each.answer.text,
            index=index,
            logprobs=logprobs,
            finish_reason=_reason(each),
            prediction_id=each.prediction.id,
        )

    def _usage(self, answers: Sequence[Completed]) -> UsageOut:
        return usage_of_prompts([each.answer.usage for each in answers], per_prompt=self._n)

    def _flush(self, choice: int) -> bytes:
        text = self._waiting.pop(choice, "")
        return self._chunk(choice, text) if text else b""

    def _chunk(self, choice: int, text: str, logprobs: TextLogprobsOut | None = None) -> bytes:
        body = {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": None}
        return self._head + encode(body) + self._tail

    def _logprobs(self, choice: int, entries: Sequence[Mapping[str, Any]]) -> TextLogprobsOut:
        """``entries`` in the older form; offsets are counted over the whole text of the choice, in characters."""
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(str(entry["token"]))
        tops = [{str(top["token"]): float(top["logprob"]) for top in entry.get("top_logprobs") or ()} for entry in entries]
        return TextLogprobsOut(
            tokens=[str(entry["token"]) for entry in entries],
            token_logprobs=[float(entry["logprob"]) for entry in entries],
            top_logprobs=tops if self._alternatives else None,
            text_offset=offsets,
        )


def _reason(each: Completed) -> str:
    reason = each.answer.finish_reason
    return reason if reason in ("length", "content_filter") else "stop"


async def _parse(body: bytes, caller: Caller) -> Order:
    wanted = read(body, _COMPLETION)
    wanted.check()
    name = model_name(wanted.model)
    requests = tuple(
        GenerationRequest(
            messages=(Message("user", prompt),),
            model=name,
            sampling=wanted.to_sampling(choice),
            request_id=caller.request_id,
            raw=True,
            prediction_id=uuid7(),
            whole=not wanted.stream,
        )
        for prompt in wanted.prompts
        for choice in range(wanted.n or 1)
    )
    ids = [str(request.prediction_id) for request in requests]
    return Order(requests, CompletionShape(caller.services.settings, ids, wanted), stream=bool(wanted.stream))


_COMPLETION: Final = msgspec.json.Decoder(CompletionBody)
OPERATION: Final = Operation(
    method="post",
    path=PATH,
    operation_id="completions",
    summary="Go on from a prompt, in OpenAI's older format",
    description="The prompt is not put into a chat template. For models that can go on from a bare prompt; others refuse it.",
    body=CompletionBody,
    answer=(TextCompletion,),
    stream='data: {"id":"01934f…","object":"text_completion","choices":[{"text":" Paris","index":0,…}]}\n\ndata: [DONE]\n\n',
    examples={"prompt": {"model": "default", "prompt": "The capital of France is", "max_tokens": 8}},
)


def route() -> Route:
    """The route, for `app.api.v1.routes`."""
    return Route(PATH, Door(_parse), methods=["POST"], name="completions")

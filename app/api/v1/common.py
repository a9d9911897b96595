"""What the vendors' shapes share: strict reading in the vendor's words, bounds of sampling, headers of the rate limit, tokens.

Refuses what cannot be kept by name: a field that is known and not supported is a 400 that says what to do instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.api import vendor_limits
from app.api.bodies import MAX_MODEL_NAME, check_model_name
from app.api.remembered import CitationOut, ContextOut
from app.core.errors import InvalidRequest
from app.core.types import Usage

if TYPE_CHECKING:
    from app.api.door import Headers
    from app.security.rate_limit import RateState

T = TypeVar("T")

MAX_MESSAGES: Final = 2048
MAX_TEXT: Final = 2_000_000
"""Most characters of all texts of a request together; the body itself is bounded by ``server.max_body_bytes``."""
MAX_TOKENS: Final = 1_048_576
MAX_SEED: Final = 2**63 - 1

ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=1, le=1000)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=MAX_SEED)]
Choices = Annotated[int, Meta(ge=1, le=8)]
StopWord = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = StopWord | Annotated[list[StopWord], Meta(max_length=4)]
LogitBias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[0-9]{1,7}$")], Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=300)
]
Label = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="Accepted, and without effect here."),
]

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]{0,300})`$")
_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]$-]{1,300}")
_MISSING = re.compile(r"Object missing required field `(.{1,100})`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
# NUL and lone surrogates cannot be stored. All else may stand in what a program sends: the output of a tool has escapes.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class StreamOptionsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """``include_usage``: a last chunk with the tokens. Chunks carry no obfuscation, whatever is asked."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptDetailsOut(Struct, frozen=True):
    """Parts of ``prompt_tokens``."""

    cached_tokens: int = 0
    audio_tokens: int = 0
    cache_write_tokens: int = 0


class CompletionDetailsOut(Struct, frozen=True):
    """Parts of ``completion_tokens``."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageOut(Struct, frozen=True):
    """Tokens as the model's own tokenizer counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetailsOut
    completion_tokens_details: CompletionDetailsOut


class AprendizOut(Struct, frozen=True):
    """What the vendor's format has no place for. ``fallback``: slug of the failure for which another target answered.

    ``examples``: how many approved corrections of similar questions the model was shown. ``citations`` and ``context``: what it
    was shown of the caller's documents and memory, where they were asked for; in a stream, with its end.
    """

    version: str
    cached: bool
    fallback: str | None
    feedback_token: str
    examples: int = 0
    citations: list[CitationOut] | UnsetType = UNSET
    context: ContextOut | UnsetType = UNSET


def read(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes strictly. Raises InvalidRequest in the words of the vendor, never with the caller's own."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _complaint(str(error)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidRequest("We could not parse the JSON body of your request: it is not valid JSON in UTF-8.") from None
    except RecursionError:
        raise InvalidRequest("The JSON body of your request is nested too deeply.") from None


def refuse(field: str, why: str) -> NoReturn:
    """Raises InvalidRequest for a field that is known and cannot be kept."""
    raise InvalidRequest(f"{field} is not supported here. {why}", field=field)


def refuse_given(body: Struct, refusals: Mapping[str, str]) -> None:
    """Refuses the fields of ``body`` named in ``refusals`` (name to advice) where they are neither absent nor null."""
    for field, why in refusals.items():
        if given(getattr(body, field)):
            refuse(field, why)


def given(value: Any) -> bool:
    """Whether a field that holds any JSON is neither absent nor null."""
    if isinstance(value, msgspec.Raw):
        return bytes(value) not in (b"", b"null")
    return value is not None and value is not msgspec.UNSET


def model_name(name: str) -> str:
    """``name`` if it is safe to look up. Raises InvalidRequest."""
    return check_model_name(name, field="model")


def check_storable(text: str, *, field: str) -> str:
    """``text`` itself. Raises InvalidRequest where it holds NUL or lone surrogates."""
    if text.isascii() and "\x00" not in text:  # the search by pattern takes a hundred times as long
        return text
    bad = _UNSTORABLE.search(text)
    if bad is not None:
        raise InvalidRequest(
            f"{field} holds U+{ord(bad.group()):04X} at position {bad.start()}, which is no text.", field=field
        )
    return text


def stop_words(stop: str | Sequence[str] | None, *, field: str = "stop") -> tuple[str, ...]:
    """The words that end an answer, checked."""
    words = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    return tuple(check_storable(word, field=field) for word in words)


def seed_of(seed: int | None, choice: int) -> int | None:
    """The seed of choice number ``choice``: each has its own, or all would be the same."""
    if seed is None:
        return None
    return seed + choice if seed + choice <= MAX_SEED else seed - choice


def limit_headers(state: RateState) -> Headers:
    """The rate limit in OpenAI's names."""
    return vendor_limits.openai(state.limit, state.remaining, state.reset_s)


def usage_out(usages: Sequence[Usage]) -> UsageOut:
    """Tokens of a call. The choices share one prompt, which is counted once, as the vendor does."""
    return usage_of_prompts(usages, per_prompt=len(usages))


def usage_of_prompts(usages: Sequence[Usage], *, per_prompt: int) -> UsageOut:
    """Tokens of a call with several prompts, each with ``per_prompt`` choices one after the other."""
    firsts = usages[::per_prompt]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    completion = sum(usage.completion_tokens for usage in usages)
    return UsageOut(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetailsOut(
            sum(usage.cached_tokens for usage in firsts), cache_write_tokens=sum(usage.cache_write_tokens for usage in firsts)
        ),
        completion_tokens_details=CompletionDetailsOut(sum(usage.reasoning_tokens for usage in usages)),
    )


def _complaint(text: str) -> InvalidRequest:
    """msgspec's message in the vendor's words; where msgspec quotes the sent value, ours does not."""
    found = _PATH.search(text)
    place = found.group(1).replace("[...]", "") if found else ""
    field = place if _PLAIN.fullmatch(place) else None
    reason = text[: found.start()] if found else text
    missing = _MISSING.match(reason)
    if missing:
        name = _below(field, missing.group(1))
        return InvalidRequest(f"Missing required parameter: '{name}'.", field=name)
    unknown = _UNKNOWN.match(reason)
    if unknown:
        name = _below(field, unknown.group(1) if _PLAIN.fullmatch(unknown.group(1)) else "…")
        return InvalidRequest(f"Unrecognized request argument supplied: {name}", field=name)
    where = field or "the body"
    if reason.startswith("Invalid "):
        return InvalidRequest(f"Invalid value for {where}: it is none of the allowed values.", field=field)
    return InvalidRequest(f"Invalid value for {where}: {reason[:200]}.", field=field)


def _below(field: str | None, name: str) -> str:
    return name if field is None else f"{field}.{name}"

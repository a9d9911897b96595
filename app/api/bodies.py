"""Request bodies: read within bounds, decoded strictly, refused with a text that says where and never what was sent.

Two kinds of route, one strictness. Raw ASGI routes decode msgspec structs (`decode`); FastAPI routes use `StrictRoute`, so
that pydantic sees JSON by the letter of RFC 8259 too: UTF-8 only, no NaN, no lone surrogates, at most 32 levels deep, and
``application/json`` as the content type. Size is bounded before, by `app.security.edge.RequestBounds`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

import msgspec
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from fastapi.routing import APIRoute
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive

from app.core.errors import InvalidRequest, UnsupportedMediaType
from app.core.ids import is_uuid7
from app.core.text import check_text
from app.core.types import GenerationRequest, Message, Principal, Sampling
from app.memory.parsing.names import COLLECTION

MAX_DEPTH: Final = 32
MAX_MESSAGES: Final = 256
MAX_CONTENT: Final = 200_000
MAX_MODEL_NAME: Final = 256
MAX_COLLECTIONS: Final = 16
MAX_CONTAINERS: Final = 100_000
"""Most opening brackets and braces of a body, those in its texts included: an empty list takes two bytes to send and fifty to
hold, and a million of them take seconds to read."""
NEW: Final = "new"
"""As ``conversation_id``: begin one. Without the field, a call belongs to no conversation."""
_MAX_SCHEMA_BYTES: Final = 32_768
_TOO_DEEP: Final = f"is nested deeper than {MAX_DEPTH} levels"
_MODEL_NAME = re.compile(r"[^\x00-\x20\x7f\\]{1,256}")
_PATH = re.compile(r" - at `\$\.?([^`]{0,100})`$")
_PLAIN_FIELD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

T = TypeVar("T")
Text = Annotated[str, Meta(max_length=MAX_CONTENT, description="Text; no control characters but tab and line ends.")]


class MessageBody(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class JsonSchemaBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON schema that the answer's text has to satisfy."""

    schema: dict[str, Any]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "answer"
    strict: bool = True


class ResponseFormatBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for JSON: any object, or one that fits a schema of at most 32 KiB and 32 levels."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | UnsetType = UNSET


class PredictBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``POST /predict`` and the WebSocket take: ``prompt`` or ``messages``, and how to sample."""

    prompt: Text | UnsetType = UNSET
    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_MESSAGES)] | UnsetType = UNSET
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME)] | UnsetType = UNSET
    max_tokens: Annotated[int, Meta(ge=1, le=131_072)] | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    stop: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=4)]
        | Annotated[str, Meta(min_length=1, max_length=64)]
        | UnsetType
    ) = UNSET
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | UnsetType = UNSET
    stream: bool = False
    response_format: ResponseFormatBody | UnsetType = UNSET
    conversation_id: (
        Annotated[str, Meta(min_length=3, max_length=36, description="An id, or `new` to begin a conversation.")] | UnsetType
    ) = UNSET
    memory: bool = False
    documents: (
        bool
        | Annotated[str, Meta(min_length=1, max_length=64, description="A collection of yours; `true`: all of them.")]
        | Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(min_length=1, max_length=MAX_COLLECTIONS)]
    ) = False

    def to_request(self, *, request_id: str, whole: bool = False) -> GenerationRequest:
        """The call as ``models`` takes it. Raises InvalidRequest for whatever the types alone do not refuse."""
        if self.conversation_id is not UNSET and self.conversation_id != NEW and not is_uuid7(self.conversation_id):
            raise InvalidRequest("conversation_id is neither an id of ours nor `new`.", field="conversation_id")
        return GenerationRequest(
            messages=self._messages(),
            model=None if self.model is UNSET else check_model_name(self.model, field="model"),
            sampling=self._sampling(),
            conversation_id=_or_none(self.conversation_id),
            request_id=request_id,
            whole=whole,
            memory=self.memory,
            documents=self._documents(),
        )

    def _documents(self) -> tuple[str, ...] | None:
        if isinstance(self.documents, bool):
            return () if self.documents else None
        return check_collections([self.documents] if isinstance(self.documents, str) else self.documents)

    def _messages(self) -> tuple[Message, ...]:
        if (self.prompt is UNSET) == (self.messages is UNSET):
            raise InvalidRequest("Send either prompt or messages.", field="prompt")
        if self.prompt is not UNSET:
            return (Message("user", check_text(self.prompt, field="prompt", limit=MAX_CONTENT, prompt=True)),)
        assert self.messages is not UNSET  # noqa: S101  # the two are exclusive, see above
        if sum(len(message.content) for message in self.messages) > MAX_CONTENT:
            raise InvalidRequest(f"messages hold more than {MAX_CONTENT} characters together.", field="messages")
        if self.messages[-1].role == "assistant":
            raise InvalidRequest("The last message must not be the assistant's.", field="messages")
        return tuple(_message(index, body) for index, body in enumerate(self.messages))

    def _sampling(self) -> Sampling:
        stop = () if self.stop is UNSET else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for word in stop:
            check_text(word, field="stop", limit=64, allow_blank=True, prompt=True)
        return Sampling(
            max_tokens=_or_none(self.max_tokens),
            temperature=_or_none(self.temperature),
            top_p=_or_none(self.top_p),
            stop=stop,
            seed=_or_none(self.seed),
            response_format=None if self.response_format is UNSET else _response_format(self.response_format),
        )


class CancelBody(Struct, frozen=True, forbid_unknown_fields=True):
    """``{"cancel": true}`` on the WebSocket: ends the running answer."""

    cancel: bool


PREDICT: Final = msgspec.json.Decoder(PredictBody)


async def read_body(receive: Receive) -> bytes:
    """The whole body, which `RequestBounds` bounds while it comes.

    Raises ClientDisconnect where the client left, and InvalidRequest for more lists and objects than `MAX_CONTAINERS`.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return check_containers(bytes(message.get("body", b"")))
    chunks: list[bytes] = []
    while message["type"] == "http.request":
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return check_containers(b"".join(chunks))
        message = await receive()
    raise ClientDisconnect


def check_containers(data: bytes) -> bytes:
    """``data`` itself. Raises InvalidRequest where it holds more than `MAX_CONTAINERS` lists and objects."""
    if len(data) > MAX_CONTAINERS and data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise InvalidRequest(f"The body holds more than {MAX_CONTAINERS} lists and objects. Send less at once.", field="body")
    return data


def require_json(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises UnsupportedMediaType unless the one Content-Type is ``application/json``, in UTF-8."""
    values = [value for name, value in headers if name == b"content-type"]
    kind, _, parameters = (values[0] if len(values) == 1 else b"").partition(b";")
    charset = parameters.strip().lower().replace(b'"', b"")
    if kind.strip().lower() != b"application/json" or charset not in (b"", b"charset=utf-8", b"charset=utf8"):
        raise UnsupportedMediaType("Send the body as `Content-Type: application/json`, in UTF-8.")


def decode(data: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes strictly. Raises InvalidRequest with the place, never with the words that came."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _complaint(str(error)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidRequest("The body is not valid JSON in UTF-8.", field="body") from None
    except RecursionError:
        raise InvalidRequest(f"The body {_TOO_DEEP}.", field="body") from None


def decode_any(data: bytes) -> Any:
    """Any JSON value, at most `MAX_DEPTH` levels deep. Raises InvalidRequest."""
    value = decode(check_containers(data), _ANY)
    check_depth(value, field="body")
    return value


def check_depth(value: Any, *, field: str) -> None:
    """Raises InvalidRequest where lists and objects are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _inside(outer)]
        if not level:
            return
    raise InvalidRequest(f"{field} {_TOO_DEEP}.", field=field)


def check_model_name(name: str, *, field: str) -> str:
    """A name that is safe to look up: bounded, without control characters, spaces, backslashes, ``..`` parts or ``~``."""
    if not _MODEL_NAME.fullmatch(name) or ".." in name.split("/") or name.startswith("~"):
        raise InvalidRequest(f"{field} is not a model name.", field=field)
    return check_text(name, field=field, limit=MAX_MODEL_NAME)


def check_collections(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` of collections, each once. Raises InvalidRequest for none, too many, or what is no such name."""
    found = tuple(dict.fromkeys(names))
    if not 1 <= len(found) <= MAX_COLLECTIONS or not all(map(COLLECTION.fullmatch, found)):
        raise InvalidRequest(
            f"documents takes true, or up to {MAX_COLLECTIONS} names of collections: lower-case letters, digits and `._-`, "
            "at most 64.",
            field="documents",
        )
    return found


class StrictRequest(Request):
    """A request whose ``json()`` is strict."""

    async def json(self) -> Any:
        """The body as JSON. Raises InvalidRequest."""
        return decode_any(await self.body())


class StrictRoute(APIRoute):
    """The route class of every FastAPI router here: ``APIRouter(route_class=StrictRoute)``.

    Who calls is asked before the body is looked at: a stranger gets 401 whatever was sent, and nothing of it is read.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, Form)
        guards = tuple(_guards(self.dependant)) if takes_json else ()

        async def strict_handle(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            for guard in guards:
                await guard(strict)
            if takes_json:
                require_json(request.scope["headers"])
                await strict.json()  # here, for FastAPI turns whatever fails while it parses into a 400 of its own
            return await handle(strict)

        return strict_handle


_ANY: Final = msgspec.json.Decoder(Any)


def _guards(dependant: Dependant) -> Iterator[Callable[[HTTPConnection], Awaitable[Principal]]]:
    """The dependencies of a route that ask who calls: they take the connection alone and give the principal."""
    for inner in dependant.dependencies:
        if inner.dependencies:
            yield from _guards(inner)
        elif inner.http_connection_param_name and inner.call and get_type_hints(inner.call).get("return") is Principal:
            yield inner.call


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _or_none(value: T | UnsetType) -> T | None:
    return None if value is UNSET else value


def _message(index: int, body: MessageBody) -> Message:
    field = f"messages[{index}].content"
    blank = body.role != "user"
    return Message(body.role, check_text(body.content, field=field, limit=MAX_CONTENT, allow_blank=blank, prompt=True))


def _response_format(body: ResponseFormatBody) -> dict[str, Any] | None:
    if (body.type == "json_schema") != (body.json_schema is not UNSET):
        raise InvalidRequest("json_schema goes with the type json_schema.", field="response_format")
    if body.json_schema is UNSET:
        return None if body.type == "text" else {"type": body.type}
    schema = body.json_schema.schema
    check_depth(schema, field="response_format")
    if len(msgspec.json.encode(schema)) > _MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"The schema is larger than {_MAX_SCHEMA_BYTES} bytes.", field="response_format")
    return {
        "type": "json_schema",
        "json_schema": {"name": body.json_schema.name, "schema": schema, "strict": body.json_schema.strict},
    }


def _complaint(text: str) -> InvalidRequest:
    """msgspec's message in our words: it quotes the sent value in a few cases, which must not come back."""
    path = _PATH.search(text)
    field = path.group(1) if path and _PLAIN_FIELD.fullmatch(path.group(1)) else "body"
    reason = text[: path.start()] if path else text
    if reason.startswith("Invalid enum value"):
        return InvalidRequest(f"{field} is none of the allowed values.", field=field)
    unknown = re.match(r"Object contains unknown field `(.*)`$", reason, re.DOTALL)
    if unknown:
        name = unknown.group(1) if _PLAIN_FIELD.fullmatch(unknown.group(1)) else "…"
        return InvalidRequest(f"Unknown field {name}.", field=name if field == "body" else f"{field}.{name}")
    return InvalidRequest(f"{field}: {reason[:200]}.", field=field)

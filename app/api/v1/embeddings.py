"""``POST /v1/embeddings``: texts to vectors, in OpenAI's format."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.api.answers import admit, count_call
from app.api.bodies import read_body, require_json
from app.api.deps import get_services
from app.api.disconnect import until_disconnect
from app.api.door import send_json
from app.api.v1.common import MAX_TEXT, Label, ModelName, check_storable, limit_headers, model_name, read
from app.api.v1.describe import Operation
from app.core.errors import InvalidRequest
from app.core.logging import request_id_var
from app.core.types import EmbeddingRequest

PATH: Final = "/v1/embeddings"
_MAX_INPUTS: Final = 2048
_MAX_DIMENSIONS: Final = 65_536
_encode = msgspec.json.Encoder().encode
Input = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]


class EmbeddingsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``POST /v1/embeddings`` takes. Texts; tokens are refused, for each model has its own.

    ``input_type``: whether the texts ask, or are to be found; for models that tell the two apart."""

    model: ModelName
    input: Input | Annotated[list[Input | int | list[int]], Meta(min_length=1, max_length=_MAX_INPUTS)]
    dimensions: Annotated[int, Meta(ge=1, le=_MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None
    input_type: Literal["query", "passage"] = "query"


class EmbeddingOut(Struct, frozen=True, kw_only=True):
    """One vector: numbers, or 32-bit little-endian floats in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Sequence[float] | str


class EmbeddingUsageOut(Struct, frozen=True):
    """Tokens of all texts together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsOut(Struct, frozen=True, kw_only=True):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[EmbeddingOut]
    model: str
    usage: EmbeddingUsageOut


_EMBEDDINGS: Final = msgspec.json.Decoder(EmbeddingsBody)


class EmbeddingsDoor:
    """The endpoint, as ASGI has it: admit, count, read, embed. See `app.api.door.Door`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        services = get_services(connection)
        principal = await admit(connection)
        state = await count_call(services, principal)
        require_json(scope["headers"])
        try:
            wanted = read(await read_body(receive), _EMBEDDINGS)
            request = _request(wanted, request_id_var.get())
            async with until_disconnect(scope, receive):
                found, model = await services.models.embed(request, principal)
        except ClientDisconnect:
            return
        as_text = wanted.encoding_format == "base64"
        content = _encode(
            EmbeddingsOut(
                data=[
                    EmbeddingOut(index=index, embedding=_base64(vector) if as_text else vector)
                    for index, vector in enumerate(found.vectors)
                ],
                model=model,
                usage=EmbeddingUsageOut(found.prompt_tokens, found.prompt_tokens),
            )
        )
        await send_json(send, content, limit_headers(state))


def _request(wanted: EmbeddingsBody, request_id: str) -> EmbeddingRequest:
    if isinstance(wanted.input, str):
        inputs = [check_storable(wanted.input, field="input")]
    else:
        inputs = [_text(text, f"input[{index}]") for index, text in enumerate(wanted.input)]
    if sum(map(len, inputs)) > MAX_TEXT:
        raise InvalidRequest(f"input holds more than {MAX_TEXT} characters together.", field="input")
    return EmbeddingRequest(tuple(inputs), model_name(wanted.model), wanted.dimensions, request_id, wanted.input_type)


def _text(given: str | int | list[int], field: str) -> str:
    if not isinstance(given, str):
        raise InvalidRequest(
            f"{field} is tokens. Each model has its own, so send the text (LangChain: check_embedding_ctx_length=False).",
            field=field,
        )
    return check_storable(given, field=field)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


OPERATION: Final = Operation(
    method="post",
    path=PATH,
    operation_id="embeddings",
    summary="Vectors of texts",
    description="OpenAI's embeddings: one text or up to 2,048, as numbers or base64. Tokens are not taken: send the text. "
    "`default` is the configured embedder where the default model makes none; `input_type` (ours): `query` or `passage`.",
    body=EmbeddingsBody,
    answer=(EmbeddingsOut,),
    examples={"texts": {"model": "default", "input": ["a red car", "a blue boat"]}},
)


def route() -> Route:
    """The route, for `app.api.v1.routes`."""
    return Route(PATH, EmbeddingsDoor(), methods=["POST"], name="embeddings")

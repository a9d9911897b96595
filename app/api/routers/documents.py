"""``/documents``: one's own: upload, list, search, download, index again, delete. `app.memory.documents` does the work.

A file is read as it comes and never held in memory whole. Foreign and absent documents look the same.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import StreamingResponse

from app.api.bodies import StrictRoute
from app.api.deps import PredictPrincipal, ReadPrincipal, Services, ServicesDep
from app.api.event_stream import EventStream, Item
from app.api.multipart import OVERHEAD, receive_form
from app.core.records import DocumentRecord
from app.core.settings import Memory
from app.core.text import check_text
from app.core.types import Passage
from app.memory.documents import DEFAULT_COLLECTION, MOST_HITS, MOST_QUERY
from app.memory.parsing.names import check_collection

router = APIRouter(prefix="/documents", route_class=StrictRoute, tags=["documents"])

PATH: Final = "/documents"
_LOOK_S: Final = 0.5
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")
_NO_VECTORS: Final = (
    "It has no vectors yet and is found by its words alone; it is embedded by itself when an embedder is there."
)
_FORM: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "txt, md, html, pdf, docx or csv."},
                    "collection": {"type": "string", "default": DEFAULT_COLLECTION},
                },
            }
        }
    },
}

DocumentId = Annotated[str, Path(min_length=1, max_length=64)]
CollectionName = Annotated[str, Query(min_length=1, max_length=64, description="Of this collection alone.")]


class DocumentOut(BaseModel):
    """A document. ``state``: `queued`, `indexing`, `ready` or `failed`; ``progress``: 0 to 1; ``error``: why it failed.

    ``format``: empty until it has been read. ``embedded``: found by meaning too. ``notes``: what did not come out of the file.
    """

    id: str
    name: str
    collection: str
    state: str
    progress: float
    format: str
    bytes: int
    sha256: str
    chunks: int
    characters: int
    embedded: bool
    error: str | None
    notes: list[str]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, record: DocumentRecord) -> DocumentOut:
        plain = record.state == "ready" and record.chunks > 0 and record.space is None
        return DocumentOut(
            **{name: getattr(record, name) for name in cls.model_fields if name not in ("embedded", "notes")},
            embedded=record.space is not None,
            notes=[*record.notes, *([_NO_VECTORS] if plain else [])],
        )


class DocumentPage(BaseModel):
    """Newest first. ``next``: send it as ``after`` for the page behind this one; null at the end."""

    items: list[DocumentOut]
    next: str | None


class CollectionOut(BaseModel):
    """A collection and what is in it; ``bytes``: of the files."""

    name: str
    documents: int
    chunks: int
    bytes: int


class CollectionList(BaseModel):
    """All collections, by name."""

    items: list[CollectionOut]


class Deleted(BaseModel):
    """How many documents are gone."""

    deleted: int


class SearchBody(BaseModel):
    """A question, or words. ``collection``: search this one alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(min_length=1, max_length=MOST_QUERY)
    k: int = Field(8, ge=1, le=MOST_HITS)
    collection: str | None = Field(None, min_length=1, max_length=64)


class SourceOut(BaseModel):
    """Where a hit stands; beside these ``page``, ``section``, ``line`` and ``row``, whichever the format has."""

    model_config = ConfigDict(extra="allow")

    name: str
    collection: str
    chunk: str


class HitOut(BaseModel):
    """A passage. ``score``: 0 to 1, comparable within one search only. ``text`` is data, never an order."""

    document_id: str
    text: str
    score: float
    source: SourceOut

    @classmethod
    def of(cls, passage: Passage) -> HitOut:
        place = {name: value for name, value in passage.place.items() if name not in SourceOut.model_fields}
        source = SourceOut(name=passage.name, collection=passage.collection, chunk=passage.id, **place)
        return HitOut(document_id=passage.document_id, text=passage.text, score=passage.score, source=source)


class SearchOut(BaseModel):
    """Best first. ``notes``: how it was searched, where that was not the whole way."""

    hits: list[HitOut]
    notes: list[str]


def most_body_bytes(settings: Memory) -> int:
    """Bytes that the body of an upload may have."""
    return (settings.document_mb << 20) + OVERHEAD


@router.post(
    "",
    status_code=201,
    summary="Upload a document",
    openapi_extra={"requestBody": _FORM},
    responses={200: {"model": DocumentOut, "description": "The same bytes are in the collection already."}},
)
async def upload_document(
    request: Request, response: Response, services: ServicesDep, principal: PredictPrincipal
) -> DocumentOut:
    """Takes a file and indexes it in the background; ask for the document until its state is `ready`.

    The form has the part `file`, and may have `collection` (`default` unless told): a-z, 0-9, `.`, `_`, `-`, at most 64.
    """
    async with services.documents.upload(principal.user_id) as upload:
        form = await receive_form(request, upload.write, file="file", fields=("collection",))
        added = await services.documents.add(
            principal.user_id,
            name=form.filename,
            collection=form.fields.get("collection", DEFAULT_COLLECTION),
            upload=upload,
        )
    response.status_code = 201 if added.new else 200
    return DocumentOut.of(added.document)


@router.get("", summary="List your documents")
async def list_documents(
    services: ServicesDep,
    principal: ReadPrincipal,
    collection: CollectionName | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    after: Annotated[str | None, Query(min_length=36, max_length=36)] = None,
) -> DocumentPage:
    """Your documents, newest first."""
    found = await services.documents.list(principal.user_id, collection=collection, limit=limit, after=after)
    return DocumentPage(items=[DocumentOut.of(each) for each in found], next=found[-1].id if len(found) == limit else None)


@router.delete("", summary="Delete a collection")
async def delete_collection(services: ServicesDep, principal: PredictPrincipal, collection: CollectionName) -> Deleted:
    """Deletes all documents of one of your collections, which has to be named."""
    return Deleted(deleted=await services.documents.delete_collection(principal.user_id, collection))


@router.get("/collections", summary="List your collections")
async def list_collections(services: ServicesDep, principal: ReadPrincipal) -> CollectionList:
    """Your collections with what is in them. One without documents does not exist."""
    found = await services.documents.collections(principal.user_id)
    return CollectionList(items=[CollectionOut.model_validate(each, from_attributes=True) for each in found])


@router.post("/search", summary="Search your documents")
async def search_documents(body: SearchBody, services: ServicesDep, principal: ReadPrincipal) -> SearchOut:
    """The passages of your documents that answer the query best, by meaning and by words."""
    query = check_text(body.query, field="query", limit=MOST_QUERY, prompt=True)
    wanted = () if body.collection is None else (check_collection(body.collection),)
    found = await services.documents.search(principal.user_id, query, k=body.k, collections=wanted)
    return SearchOut(hits=[HitOut.of(each) for each in found.passages], notes=list(found.notes))


@router.get("/{document_id}", summary="Show one")
async def show_document(document_id: DocumentId, services: ServicesDep, principal: ReadPrincipal) -> DocumentOut:
    """One document of yours, and how far its indexing is."""
    return DocumentOut.of(await services.documents.get(principal.user_id, document_id))


@router.delete("/{document_id}", status_code=204, summary="Delete one")
async def delete_document(document_id: DocumentId, services: ServicesDep, principal: PredictPrincipal) -> Response:
    """Deletes a document of yours with its file, its chunks and their vectors."""
    await services.documents.delete(principal.user_id, document_id)
    return Response(status_code=204)


@router.post("/{document_id}/reindex", status_code=202, summary="Index one again")
async def reindex_document(document_id: DocumentId, services: ServicesDep, principal: PredictPrincipal) -> DocumentOut:
    """Reads and indexes a document of yours again. What is found of it now is found until the new index stands."""
    return DocumentOut.of(await services.documents.reindex(principal.user_id, document_id))


@router.get(
    "/{document_id}/file",
    summary="Download the file",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The bytes as they were uploaded."}},
)
async def download_document(document_id: DocumentId, services: ServicesDep, principal: ReadPrincipal) -> Response:
    """The file as you uploaded it, to be saved; no browser shows it."""
    document = await services.documents.get(principal.user_id, document_id)
    headers = {
        "content-disposition": _attachment(document.name),
        "content-length": str(document.bytes),
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": "private, no-store",
    }
    content = services.documents.file(principal.user_id, document)
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


@router.get(
    "/{document_id}/events",
    status_code=200,
    summary="Follow its indexing",
    response_class=EventStream,
    responses={
        200: {
            "description": "Server-sent events: `progress` with the document whenever it changes; last `end` with it.",
            "content": {"text/event-stream": {"example": 'event: progress\ndata: {"state":"indexing","progress":0.4}\n\n'}},
        }
    },
)
async def follow_document(document_id: DocumentId, services: ServicesDep, principal: ReadPrincipal) -> EventStream:
    """`progress` as it comes, then `end`, both with the document. A stream without `end` was cut: ask again."""
    document = await services.documents.get(principal.user_id, document_id)
    return EventStream(_events(services, document), services=services, principal=principal)


async def _events(services: Services, document: DocumentRecord) -> AsyncGenerator[Item, None]:
    shown = None
    while document.state in ("queued", "indexing"):
        now = (document.state, document.progress)
        if now != shown:
            yield None, "progress", DocumentOut.of(document).model_dump(mode="json")
            shown = now
        await asyncio.sleep(_LOOK_S)
        document = await services.documents.get(document.user_id, document.id)
    yield None, "end", DocumentOut.of(document).model_dump(mode="json")


def _attachment(name: str) -> str:
    """The header of RFC 6266: a plain name for old clients, the whole one in UTF-8."""
    plain = _UNSAFE.sub("_", name).strip() or "document"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"

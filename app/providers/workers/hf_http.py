"""The worker's HTTP side: the OpenAI chat format over a private socket, for one caller who knows the key.

    POST /v1/chat/completions   one answer, whole or as server-sent events
    POST /tokenize              {"messages": [...]} → {"tokens": number}: what the prompt would take, after templating
    POST /prompt                {"messages": [...]} → {"prompt": text}: the same as text
    POST /score                 {"messages": [...], "completion": text} → {"logprobs": [number, ...]}, one a token
    GET  /props                 what is served: context, slots, device, number type, hashes, chat template
    GET  /stats                 rows running, being read, waiting; steps and tokens since the start
    GET  /health                open; 200 once the model is loaded

A caller that leaves takes its row out of the batch before the next step.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from aiohttp import web

from app.providers.workers.hf_batch import Piece, Row
from app.providers.workers.hf_chat import ChatFormat
from app.providers.workers.hf_request import BadRequest, Chat, parse_chat, parse_messages
from app.providers.workers.hf_text import Decode

_MOST_BODY_BYTES = 64 << 20
_LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Line(Protocol):
    """Where rows are put in line: `hf_batch.Batcher`."""

    def submit(self, row: Row) -> None: ...

    def stats(self) -> dict[str, int]: ...


class Scorer(Protocol):
    """Who computes log-probabilities of given tokens: `hf_score.Scorer`."""

    async def score(self, prompt: list[int], answer: list[int]) -> list[float]: ...


class Service:
    """The handlers. ``props`` is what ``GET /props`` answers; ``context_tokens`` bounds prompt and answer together."""

    def __init__(
        self,
        *,
        key: str,
        line: Line,
        scorer: Scorer,
        chat: ChatFormat,
        decode: Decode,
        context_tokens: int,
        props: Mapping[str, Any],
    ) -> None:
        self._key = key.encode()
        self._line = line
        self._scorer = scorer
        self._chat = chat
        self._decode = decode
        self._context = context_tokens
        self._props = dict(props)

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(middlewares=[self._guard], client_max_size=_MOST_BODY_BYTES)
        application.router.add_get("/health", self._health)
        application.router.add_get("/props", self._give_props)
        application.router.add_get("/stats", self._stats)
        application.router.add_post("/tokenize", self._tokenize)
        application.router.add_post("/prompt", self._prompt)
        application.router.add_post("/score", self._score)
        application.router.add_post("/v1/chat/completions", self._complete)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path != "/health" and not hmac.compare_digest(given, b"Bearer " + self._key):
            return _error(401, "The key is missing or wrong.", "authentication_error")
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(400, error.message, error.kind, **error.extra)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _give_props(self, _request: web.Request) -> web.Response:
        return web.json_response(self._props)

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self._line.stats())

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await _json_body(request)
        return web.json_response({"tokens": len(self._chat.encode(parse_messages(body)))})

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await _json_body(request)
        return web.json_response({"prompt": self._chat.text(parse_messages(body))})

    async def _score(self, request: web.Request) -> web.Response:
        body = await _json_body(request)
        completion = body.get("completion")
        if not isinstance(completion, str):
            raise BadRequest("completion must be text.")
        prompt, answer = self._chat.encode(parse_messages(body)), self._chat.plain(completion)
        if len(prompt) + len(answer) > self._context:
            raise _too_long(len(prompt) + len(answer), self._context)
        try:
            logprobs = await self._scorer.score(prompt, answer)
        except MemoryError:
            return _error(500, "The engine ran out of memory. Try a shorter prompt.", "server_error")
        # NaN is not greater either
        return web.json_response({"logprobs": [each if each > _LOWEST_LOGPROB else _LOWEST_LOGPROB for each in logprobs]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        chat = parse_chat(await _json_body(request))
        pieces: asyncio.Queue[Piece] = asyncio.Queue()  # bounded by the answer's own length
        row = self._row(chat, pieces.put_nowait)
        answer = _Answer(row, self._decode, str(self._props.get("model", "")))
        self._line.submit(row)
        try:
            first = await pieces.get()
            if first.error:
                return _error(500, first.error, "server_error")
            if chat.stream:
                return await _stream(request, chat, answer, first, pieces)
            collected = [first]
            while not collected[-1].finish:
                collected.append(await pieces.get())
                if collected[-1].error:
                    return _error(500, str(collected[-1].error), "server_error")
            return web.json_response(answer.whole(collected))
        finally:
            row.cancelled = True  # a row that has ended does not mind

    def _row(self, chat: Chat, receive: Callable[[Piece], None]) -> Row:
        prompt = self._chat.encode(chat.messages)
        room = self._context - len(prompt)
        if room < 1:
            raise _too_long(len(prompt), self._context)
        params = replace(chat.params, stop=chat.params.stop + self._chat.stops)
        return Row(prompt, params, min(params.max_tokens or room, room), receive)


class _Answer:
    """One answer in the words of the format."""

    def __init__(self, row: Row, decode: Decode, model: str) -> None:
        self._row = row
        self._decode = decode
        self._frame = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": 0, "model": model}

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": pieces[-1].finish}
        if self._row.params.logprobs is not None:
            choice["logprobs"] = {"content": [entry for piece in pieces for entry in self._logprobs(piece)]}
        return {**self._frame, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def chunk(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """One event of a stream."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.text or first:
            delta["content"] = piece.text
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": piece.finish}
        if piece.scores:
            choice["logprobs"] = {"content": self._logprobs(piece)}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        """The last event before ``[DONE]`` where usage was asked for."""
        return {**self._frame, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        read, said = len(self._row.prompt), self._row.tokens
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        return [
            {
                **self._logprob(token, scores.chosen),
                "top_logprobs": [self._logprob(other, score) for other, score in scores.top],
            }
            for token, scores in piece.scores
        ]

    def _logprob(self, token: int, score: float) -> dict[str, Any]:
        text = self._decode([token])
        score = score if score > _LOWEST_LOGPROB else _LOWEST_LOGPROB  # NaN is not greater either
        return {"token": text, "logprob": score, "bytes": list(text.encode())}


async def _stream(
    request: web.Request, chat: Chat, answer: _Answer, first: Piece, pieces: asyncio.Queue[Piece]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    piece, opening = first, True
    while True:
        await response.write(_event(answer.chunk(piece, first=opening)))
        if piece.finish:
            break
        piece, opening = await pieces.get(), False
        if piece.error:
            await response.write(_event({"error": {"message": piece.error, "type": "server_error", "code": 500}}))
            return response
    if chat.usage_chunk:
        await response.write(_event(answer.usage_chunk()))
    await response.write(b"data: [DONE]\n\n")
    return response


def _too_long(tokens: int, context: int) -> BadRequest:
    return BadRequest(
        f"The prompt has {tokens} tokens and does not fit into the context of {context} tokens.",
        kind="exceed_context_size_error",
        n_prompt_tokens=tokens,
        n_ctx=context,
    )


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str, kind: str, **extra: Any) -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "code": status, **extra}}, status=status)


async def _json_body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body

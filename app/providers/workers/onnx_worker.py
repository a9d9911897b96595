"""The engine process of the provider ``onnx``: one embedding model, served in the OpenAI format on a private socket.

Run by `app.providers.engine.Engine` as ``python -m app.providers.workers.onnx_worker``. Configuration (see `workers.child`)
besides what every worker gets: ``folder``, ``files`` (name to SHA-256: what may be read there), ``threads`` (0: all cores).

    POST /v1/embeddings   {"input": [text, ...], "input_type": "query" | "passage", "encoding_format": "base64" | "float"}
    GET  /health          open; 200, for it listens only once the model is loaded

One batch is computed at a time, and requests take turns batch by batch: a question never waits for a whole document. A caller
that leaves ends its turns.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from app.providers.workers.child import Child, begin
from app.providers.workers.listening import listen

if TYPE_CHECKING:
    from app.providers.workers.onnx_model import Array, EmbeddingModel, Kind

_MOST_BODY_BYTES = 64 << 20
_MOST_TEXTS = 2048
_BATCH_TOKENS = 1024
"""Padded tokens of one batch: about a quarter of a second on two cores, which is how long another caller waits."""
_NICE = 5
"""Whoever waits for an answer comes before whoever waits for an index."""


def main() -> None:
    """Loads the model, serves it until the parent goes or says SIGTERM."""
    child = begin()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    threads = int(child.config.get("threads") or 0) or len(os.sched_getaffinity(0))
    os.environ.update(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
    model = _load(child, threads)
    asyncio.run(_serve(child, model))


def _load(child: Child, threads: int) -> EmbeddingModel:
    from app.providers.workers.onnx_model import EmbeddingModel, Refused

    try:
        return EmbeddingModel(Path(child.config["folder"]), child.config["files"], threads=threads)
    except Refused as refused:
        child.fail(str(refused))
    except MemoryError:
        child.fail("There is not enough memory for this model.")
    except Exception:  # noqa: BLE001 (whatever damaged files make of the runtime: the log has the trace, the caller the words)
        traceback.print_exc()
        child.fail("The embedding model cannot be loaded: its files are damaged, or of a kind that we do not know.")


async def _serve(child: Child, model: EmbeddingModel) -> None:
    service = Service(model, str(child.config["api_key"]))
    runner = web.AppRunner(service.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    port = await listen(runner, child.config)
    child.listening(port=port, device="cpu", dimensions=model.dimensions, max_tokens=model.options.max_tokens)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await runner.cleanup()
    service.stop()


class Service:
    """The handlers, and the one thread that computes."""

    def __init__(self, model: EmbeddingModel, key: str) -> None:
        self._model = model
        self._key = key.encode()
        self._turn = asyncio.Lock()  # first come, first served: whoever has had a batch goes to the end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=_MOST_BODY_BYTES)
        application.router.add_get("/health", self._health)
        application.router.add_post("/v1/embeddings", self._embed)
        return application

    def stop(self) -> None:
        """Ends the thread after its batch."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _embed(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, b"Bearer " + self._key):
            return _error(401, "The key is missing or wrong.")
        try:
            texts, kind, as_text = _parse(json.loads(await request.read()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return _error(400, "The body is not what this engine takes.")
        try:
            vectors, tokens = await self._vectors(texts, kind)
        except MemoryError:
            return _error(500, "The engine ran out of memory. Try fewer or shorter texts.")
        except Exception:  # noqa: BLE001 (the runtime's own words go to the log, ours to the caller)
            traceback.print_exc(file=sys.stderr)
            return _error(500, "The embedding model failed on this text.")
        data = [
            {"object": "embedding", "index": number, "embedding": _coded(vector, as_text=as_text)}
            for number, vector in enumerate(vectors)
        ]
        return web.json_response({"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    async def _vectors(self, texts: Sequence[str], kind: Kind) -> tuple[list[Array], int]:
        """The vectors in the order of the texts, and how many tokens were read."""
        rows: list[list[int]] = []
        for start in range(0, len(texts), 32):
            part = texts[start : start + 32]
            rows += await self._compute(lambda part=part: [self._model.encode(text, kind) for text in part])
        found: dict[int, Array] = {}
        for batch in batches([len(row) for row in rows]):
            vectors = await self._compute(lambda batch=batch: self._model.embed([rows[number] for number in batch]))
            found.update(zip(batch, vectors, strict=True))
        return [found[number] for number in range(len(rows))], sum(map(len, rows))

    async def _compute(self, work: Any) -> Any:
        async with self._turn:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of rows, the shortest first, in batches of at most `_BATCH_TOKENS` tokens once padded; one row at least."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda each: lengths[each]):
        if not found or (len(found[-1]) + 1) * lengths[number] > _BATCH_TOKENS:
            found.append([])
        found[-1].append(number)
    return found


def _parse(body: dict[str, Any]) -> tuple[list[str], Kind, bool]:
    texts, kind = body["input"], body.get("input_type", "query")
    if not isinstance(texts, list) or not 1 <= len(texts) <= _MOST_TEXTS or not all(isinstance(text, str) for text in texts):
        raise ValueError("input")
    if kind not in ("query", "passage"):
        raise ValueError("input_type")
    return texts, kind, body.get("encoding_format") == "base64"


def _coded(vector: Array, *, as_text: bool) -> str | list[float]:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else [float(each) for each in vector]


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "server_error", "code": status}}, status=status)


if __name__ == "__main__":
    main()

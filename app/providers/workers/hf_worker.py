"""The engine process of the provider ``hf``: one model in torch, served in the OpenAI format on a private socket.

Run by `app.providers.engine.Engine` as ``python -m app.providers.workers.hf_worker``. Configuration (see `workers.child`)
besides what every worker gets:

    path              folder or GGUF file on this machine, or null for a Hub name
    name              the model's name: the Hub name where ``path`` is null
    device            auto, cpu, cuda or mps
    dtype             auto, float32, bfloat16 or float16
    context_tokens    most tokens of prompt and answer together; the model's own limit where that is smaller
    slots             answers that run at the same time
    threads           0: as many as there are cores
    cache             folder for converted GGUF files and remembered hashes
    hub_token         for models that the hub gives only to some accounts, or null
    adapter           folder, adapter_hash and base_hash of an adapter in PEFT's format, or null
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.core.errors import AprendizError
from app.providers.workers.child import EXIT_FAILED, Child, begin
from app.providers.workers.hf_source import LoadRefused, Source, base_hash, from_hub, is_hub_name, local

if TYPE_CHECKING:
    from app.providers.workers.hf_batch import Batcher, Piece, Row
    from app.providers.workers.hf_chat import ChatFormat
    from app.providers.workers.hf_load import Loaded

_log = logging.getLogger(__name__)

_DEFAULT_CONTEXT = 2048
_CHUNK = {"cpu": 256, "mps": 512}
"""Prompt tokens between two steps of running answers; a CPU reads some hundred a second, a GPU ten thousand."""
_GPU_CHUNK = 4096


def main() -> None:
    """Loads the model, serves it until the parent goes or says SIGTERM."""
    child = begin()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    threads = int(child.config.get("threads") or 0) or len(os.sched_getaffinity(0))
    _environment(child.config, threads)
    try:
        source = _source(child.config)
        digest = base_hash(source, Path(child.config["cache"]))
        adapter = child.config.get("adapter")
        if adapter is not None and adapter["base_hash"] != digest:
            raise LoadRefused("The adapter was trained on another base model than this; load it with its own.")
        loaded, chat = _load(source, child.config, digest, threads)
    except LoadRefused as refused:
        child.fail(refused.detail, unknown=refused.unknown)
    except AprendizError as error:
        child.fail(error.detail)
    except MemoryError:
        child.fail("There is not enough memory for this model.")
    except Exception:  # noqa: BLE001 (whatever damaged files make of transformers: the log has the trace, the caller the words)
        traceback.print_exc()
        child.fail("The model cannot be loaded: its files are damaged, or of a kind that transformers does not know.")
    asyncio.run(_serve(child, loaded, chat, digest, threads, source))


def _environment(config: Mapping[str, Any], threads: int) -> None:
    """Set before torch and transformers are imported, which read it then."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DOWNLOAD_TIMEOUT="15",
        HF_HUB_ETAG_TIMEOUT="4",
    )
    # Threads that wait by spinning fight with whatever else runs here: on a busy machine this alone doubles the speed.
    if config.get("path"):
        os.environ["HF_HUB_OFFLINE"] = "1"


def _source(config: Mapping[str, Any]) -> Source:
    if config.get("path"):
        return local(Path(config["path"]))
    if not is_hub_name(str(config["name"])):
        raise LoadRefused("This is neither a folder nor a file here, nor the name of a model on a hub.", unknown=True)
    return from_hub(str(config["name"]), token=config.get("hub_token"))


def _load(source: Source, config: Mapping[str, Any], digest: str, threads: int) -> tuple[Loaded, ChatFormat]:
    import torch

    from app.providers.workers.hf_chat import ChatFormat
    from app.providers.workers.hf_load import load

    torch.set_num_threads(threads)
    loaded = load(
        source,
        device=str(config.get("device") or "auto"),
        dtype=str(config.get("dtype") or "auto"),
        cache=Path(config["cache"]) / "converted",
        digest=digest,
    )
    adapter = config.get("adapter")
    if adapter is not None:
        from app.providers.workers.hf_adapter import apply_lora
        from app.providers.workers.peft_files import read_lora

        apply_lora(loaded.model, read_lora(Path(adapter["folder"]), sha256=adapter["adapter_hash"]))
    return loaded, ChatFormat(loaded.tokenizer)


async def _serve(child: Child, loaded: Loaded, chat: ChatFormat, digest: str, threads: int, source: Source) -> None:
    from aiohttp import web

    from app.providers.workers.hf_http import Service
    from app.providers.workers.hf_score import Scorer
    from app.providers.workers.listening import listen

    config, loop = child.config, asyncio.get_running_loop()
    wanted = int(config.get("context_tokens") or _DEFAULT_CONTEXT)
    context = min(wanted, loaded.context_tokens or wanted)
    facts = {
        "device": loaded.device.type,
        "dtype": loaded.dtype,
        "context_tokens": context,
        "slots": int(config.get("slots") or 1),
        "base_hash": digest,
        "template_hash": chat.template_hash,
        "revision": source.revision,
    }
    batcher = _batcher(loaded, facts["slots"], threads, loop)
    scorer = Scorer(loaded.model, loaded.device, threads=threads, chunk=_CHUNK.get(loaded.device.type, _GPU_CHUNK))
    service = Service(
        key=str(config["api_key"]),
        line=batcher,
        scorer=scorer,
        chat=chat,
        decode=loaded.decode,
        context_tokens=context,
        props={**facts, "model": config.get("name"), "chat_template": chat.template},
    )
    runner = web.AppRunner(service.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    batcher.start()
    port = await listen(runner, config)
    child.listening(port=port, **facts)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await runner.cleanup()
    scorer.stop()
    batcher.stop()


def _batcher(loaded: Loaded, slots: int, threads: int, loop: asyncio.AbstractEventLoop) -> Batcher:
    from app.providers.workers.hf_batch import Batcher, Runtime

    def hand_over(pieces: list[tuple[Row, Piece]]) -> None:
        for row, piece in pieces:
            row.receive(piece)

    def deliver(pieces: list[tuple[Row, Piece]]) -> None:
        loop.call_soon_threadsafe(hand_over, pieces)

    def failed(error: BaseException) -> None:
        # A dead loop must not look alive: the supervisor starts a new process, and callers learn at once.
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    runtime = Runtime(
        model=loaded.model,
        decode=loaded.decode,
        end_tokens=loaded.end_tokens,
        device=loaded.device,
        slots=slots,
        chunk=_CHUNK.get(loaded.device.type, _GPU_CHUNK),
        threads=threads,
    )
    return Batcher(runtime, deliver=deliver, failed=failed)


if __name__ == "__main__":
    main()

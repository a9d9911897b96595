"""The engine of the provider ``llamacpp``: llama.cpp's own server on a private socket, in a process of its own.

The model file is parsed here and nowhere else. Configuration keys beside those of `app.providers.workers.child`:
``model_path``, ``device`` (auto, cpu, cuda, mps), ``slots``, ``context_tokens`` (per slot), ``threads``, ``adapters`` (a list
of ``{"path", "sha256"}``).

Adapters are listed with scale 0, so that only requests that name one get it. One that is gone, changed or not to be trusted
is left out: those that serve already must come back after a crash. Reported are ``adapters``, the hashes of those that are
there in the order of their numbers, and ``refused``, why others are not.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from app.providers.workers.child import Child, begin
from app.providers.workers.llamacpp_adapter import AdapterRefused, check_adapter

_BATCH_TOKENS = 256
"""Small: between two batches the server hears that a client is gone (with ``return_progress`` in the request)."""
_SPARE_HTTP_THREADS = 8
"""Beyond one for each slot: health checks, token counts and requests that wait for the end of another."""
_LOG_WARNINGS = 2
_BACKENDS = {"cuda": "CUDA", "mps": "MTL"}
"""What a device's name in llama.cpp begins with."""


def main() -> None:
    """Serves until it is killed or its parent is gone."""
    child = begin()
    try:
        import xllamacpp  # only here: this process is the one that may
    except ModuleNotFoundError:
        child.fail("The package xllamacpp is not installed: install Aprendiz again, or use another provider.")
    except ImportError:  # a slim system lacks what the wheel links to
        child.fail(
            "The llama.cpp library cannot be loaded. It needs the system's OpenMP and C++ runtimes; "
            "on Debian and Ubuntu: apt install libgomp1 libstdc++6."
        )
    devices = [str(info["name"]) for info in xllamacpp.get_device_info()]
    device = _device(child, devices)
    adapters, refused = _adapters(child)
    params = _params(child, xllamacpp, device)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters.values()]
    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent shall hear of it in our words
        sys.stderr.write(f"{error!r}\n")
        child.fail(
            "llama.cpp cannot load this model: the file is damaged, of an unknown kind, or too large for the memory there is."
            if not adapters
            else "llama.cpp cannot load this model with its adapters: one of them does not fit it, or memory is too small."
        )
    child.listening(
        port=_port(server.listening_address),
        device=device,
        build=str(xllamacpp.__version__),
        llguidance=str(xllamacpp.json_schema_to_grammar({"type": "object"})).startswith("%llguidance"),
        adapters=list(adapters),
        refused=refused,
    )
    threading.Event().wait()


def _device(child: Child, devices: list[str]) -> str:
    wanted = str(child.config["device"])
    for name, backend in _BACKENDS.items():
        if wanted in ("auto", name) and any(device.startswith(backend) for device in devices):
            return name
    if wanted in _BACKENDS:
        child.fail(f"This build of llama.cpp has no {wanted} device (it has {', '.join(devices)}). Use the device auto or cpu.")
    return "cpu"


def _adapters(child: Child) -> tuple[dict[str, str], dict[str, str]]:
    """Paths of the good ones and reasons against the others, both by hash."""
    good: dict[str, str] = {}
    refused: dict[str, str] = {}
    for adapter in child.config.get("adapters", ()):
        try:
            check_adapter(Path(adapter["path"]), adapter["sha256"])
            good[adapter["sha256"]] = adapter["path"]
        except AdapterRefused as error:
            refused[adapter["sha256"]] = error.detail
    return good, refused


def _params(child: Child, xllamacpp: Any, device: str) -> Any:
    config = child.config
    slots, threads = int(config["slots"]), int(config["threads"]) or os.cpu_count() or 1
    params = xllamacpp.CommonParams()
    params.model.path = config["model_path"]
    params.model_alias = {"model"}  # otherwise each piece of each answer carries the path
    params.hostnames = [config.get("socket") or config["host"]]
    params.port = 0
    params.api_keys = [config["api_key"]]
    params.n_parallel = slots
    params.n_ctx = slots * int(config["context_tokens"])
    params.kv_unified = False  # each slot owns its share: twice as fast with many slots, and nobody takes another's room
    params.fit_params = False  # what was asked for, or an error; not quietly a smaller context
    params.n_batch = _BATCH_TOKENS
    params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = slots + _SPARE_HTTP_THREADS
    params.n_gpu_layers = 0 if device == "cpu" else -1
    params.cache_ram_mib = 0
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_metrics = False
    params.endpoint_props = False
    params.use_jinja = True
    params.verbosity = _LOG_WARNINGS
    return params


def _port(address: str) -> int | None:
    return None if address.startswith("unix:") else int(address.rpartition(":")[2])


if __name__ == "__main__":
    main()

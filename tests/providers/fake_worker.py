"""A worker without a model: the public protocol of workers over a few lines of HTTP. Run by `Engine` as a real process.

``mode`` in its configuration: ``ok``; ``die`` (exits while loading), ``crash`` (SIGSEGV), ``fail`` (gives up with words),
``hang`` (never listens), ``noise`` (writes a lot before it listens), ``flaky`` (dies once a file is there).
``POST /v1/chat/completions`` streams ``count`` pieces, one each 20 ms.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from app.providers.workers.child import Child, begin


def main() -> None:
    child = begin()
    mode = child.config.get("mode", "ok")
    flag = child.config.get("flag")
    if mode == "flaky" and flag and Path(flag).exists():
        mode = "die"
    if mode == "die":
        sys.stderr.write("third-party trace: /secret/path\n")
        os._exit(1)
    if mode == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "fail":
        child.fail("The model is made of cheese.", unknown=bool(child.config.get("unknown")))
    if mode == "hang":
        time.sleep(600)
    if mode == "noise":
        os.write(1, b'{"listening": {"port": 1}}\n')  # stdout of a library: must not count as a report
        os.write(2, b"x" * 300_000 + b"\n")
        for number in range(1000):
            os.write(2, f"line {number}\n".encode())
    if child.config.get("grandchild"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    asyncio.run(_serve(child))


async def _serve(child: Child) -> None:
    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _answer(child.config, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    if "socket" in child.config:
        server = await asyncio.start_unix_server(on_connection, child.config["socket"])
        port = None
    else:
        server = await asyncio.start_server(on_connection, child.config["host"], 0)
        port = server.sockets[0].getsockname()[1]
    child.listening(port=port, device="cpu", environment=sorted(os.environ), argv=sys.argv)
    await server.serve_forever()


async def _answer(config: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET /health"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        return
    if f"authorization: bearer {config['api_key']}".lower().encode() not in head.lower():
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(int(config.get("count", 5))):
        _send(writer, {"choices": [{"delta": {"content": f"w{number} "}}]})
        await writer.drain()
        await asyncio.sleep(0.02)
    _send(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()


def _send(writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
    event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


if __name__ == "__main__":
    main()

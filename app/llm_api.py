"""The old entry point: serves the same app as ``app.main`` and says so, once. For new set-ups use ``app.main:app``.

It stays so that ``uvicorn app.llm_api:app`` and ``python -m app.llm_api`` keep working while scripts are moved over, also
beside the new entry point on another port. There is no other code path here.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any

MESSAGE = "app.llm_api is deprecated and will be removed in 1.0: serve app.main:app (or run `aprendiz serve`) instead."


@functools.cache
def warn() -> None:
    """One DeprecationWarning and one log line per process."""
    warnings.warn(MESSAGE, DeprecationWarning, stacklevel=3)
    logging.getLogger(__name__).warning(MESSAGE)


def main() -> int:
    """Serves as ``python -m app.main`` does."""
    from app.main import main as serve_main

    return serve_main(say=warn)


def __getattr__(name: str) -> Any:
    if name == "app":
        import app.main

        application = app.main.app
        warn()  # after it: the logs are configured by then
        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())

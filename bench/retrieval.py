"""``aprendiz bench retrieval``: how well documents are found, and what that does to answers.

First part: real text in English and Spanish (`bench/retrieval_corpus.py`), indexed by the service itself; each question has one
text that answers it. Searched by words alone, by vectors alone and by both, side by side: how often the right document is
among the first five, the mean reciprocal rank among ten, and the median time of a search. es-en asks in Spanish for English
text. Second part (``--answers``): questions whose answers stand in a small handbook that no model has read (`bench/answers`),
asked of the bundled model with and without ``documents: true``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.api.deps import Services
from app.core import config
from app.core.ids import uuid7
from app.core.records import UserRecord
from app.core.types import GenerationRequest, Message, Principal, Sampling
from app.db.chunks import Chunks
from app.db.users import Users
from app.main import create_app
from app.memory.documents import DocumentLibrary
from app.memory.embedding import ModelEmbedder
from app.memory.search import Search
from bench.retrieval_corpus import Item, fetch, of_file, pages, sections, shared

ROOT: Final = Path(__file__).parents[1]
FIRST: Final = 5
DEEPEST: Final = 10
_INDEX_S: Final = 1800.0


def main() -> int:
    """Runs it; returns the exit code."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="aprendiz-bench-") as folder:
        report = asyncio.run(_run(arguments, Path(folder)))
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aprendiz bench retrieval", description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / ".cache" / "models", help="folder of pulled models")
    parser.add_argument("--embedder", default="onnx/multilingual-e5-small", help="as the setting memory.embedder")
    parser.add_argument("--store", default="auto", help="as the setting memory.store")
    parser.add_argument("--corpus", type=Path, help='your own text: lines of {"id", "query", "text"}')
    parser.add_argument("--limit", type=int, default=0, help="items of each set; 0: all")
    parser.add_argument("--answers", action="store_true", help="only the answers, with and without documents")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="GGUF model that answers")
    parser.add_argument("--json", action="store_true", help="the figures as JSON too")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    models = folder / "models"
    models.symlink_to(arguments.models.absolute())
    settings = config.with_secret_key(
        config.load(
            folder=folder,
            environ={
                "APRENDIZ_DATA_DIR": str(folder),
                "APRENDIZ_MODEL__MODEL": arguments.model,
                "APRENDIZ_MODEL__PRELOAD": str(arguments.answers),
                "APRENDIZ_MEMORY__EMBEDDER": arguments.embedder,
                "APRENDIZ_MEMORY__STORE": arguments.store,
                "APRENDIZ_LOGGING__LEVEL": "WARNING",
                "APRENDIZ_CACHE__TTL_S": "0",
            },
        )
    ).settings
    app = create_app(settings, announce=lambda line: None)
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        user = UserRecord(uuid7(), "bench", "user", "-", datetime.now(UTC))
        await Users(services.database).create(user)
        house = _House(services, user.id)
        if arguments.answers:
            return {"answers": await _answers(house)}
        return {"retrieval": await _retrieval(house, arguments)}


class _House:
    """A running service, and one user of it."""

    def __init__(self, services: Services, user_id: str) -> None:
        self.services = services
        self.user_id = user_id
        self.library: DocumentLibrary = services.documents
        self.chunks = Chunks(services.database)
        embedder = ModelEmbedder(services.settings.memory, services.models.embed_version)
        self.search = Search(self.chunks, embedder=embedder, vectors=services.vectors)

    async def index(self, collection: str, texts: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Indexes named texts; returns the name by document. Raises TimeoutError, RuntimeError."""
        names = {}
        for name, text in texts:
            added = await self.library.add_bytes(self.user_id, text.encode(), name=name, collection=collection)
            names[added.document.id] = name
        async with asyncio.timeout(_INDEX_S):
            waiting = set(names)
            while waiting:
                document = await self.library.get(self.user_id, next(iter(waiting)))
                if document.state == "failed":
                    raise RuntimeError(f"a document failed: {document.error}")
                if document.state == "ready" and document.space is not None:
                    waiting.discard(document.id)
                else:
                    await asyncio.sleep(0.2)
        return names

    async def documents_of(self, collection: str, ids: Sequence[str]) -> list[str]:
        """The documents of chunks, in their order, each once."""
        of = {each.id: each.document_id for each in await self.chunks.by_id(self.user_id, [collection], ids)}
        return list(dict.fromkeys(of[each] for each in ids if each in of))


async def _retrieval(house: _House, arguments: argparse.Namespace) -> list[dict[str, object]]:
    rows = []
    _say(f"{'set':<22}{'texts':>6}{'asked':>6}  " + "".join(f"{mode:>24}" for mode in ("words", "vectors", "both")))
    _say(f"{'':<36}" + f"{'hit@5   MRR@10    ms':>24}" * 3)
    indexed: dict[str, dict[str, str]] = {}
    for name, collection, texts, asked in _sets(arguments):
        items = asked[: arguments.limit or None]
        if collection not in indexed:
            indexed[collection] = await house.index(collection, [(item.id, item.text) for item in texts])
        names = indexed[collection]
        figures = {mode: await _measured(names, items, ask) for mode, ask in _modes(house, collection).items()}
        rows.append({"set": name, "texts": len(texts), "asked": len(items), **figures})
        cells = "".join(f"{each['hit']:>10.2f}{each['mrr']:>8.3f}{each['ms']:>6.1f}" for each in figures.values())
        _say(f"{name:<22}{len(texts):>6}{len(items):>6}  {cells}")
    return rows


def _sets(arguments: argparse.Namespace) -> list[tuple[str, str, list[Item], list[Item]]]:
    """Name, collection, its texts, and what is asked; two sets may ask of one collection."""
    if arguments.corpus is not None:
        own = of_file(arguments.corpus)
        return [("own", "own", own, own)]
    root = fetch(ROOT / ".cache" / "bench" / "retrieval")
    found = []
    for name, read in (("reference", sections), ("manual", pages)):
        english, spanish = read(root, "en"), read(root, "es")
        found += [
            (f"{name}-en", f"{name}-en", english, english),
            (f"{name}-es", f"{name}-es", spanish, spanish),
            (f"{name}-es-en", f"{name}-en", english, shared(spanish, english)),
        ]
    return found


Ask = Callable[[str], Awaitable[list[str]]]


def _modes(house: _House, collection: str) -> dict[str, Ask]:
    async def words(query: str) -> list[str]:
        found = await house.search.by_words(house.user_id, query, [collection])
        return list(dict.fromkeys(each.document_id for each in found.chunks))

    async def vectors(query: str) -> list[str]:
        found = await house.search.by_vectors(house.user_id, query, [collection])
        if found.note is not None:
            raise RuntimeError(found.note)
        return await house.documents_of(collection, found.ids)

    async def both(query: str) -> list[str]:
        found, _ = await house.search.search(house.user_id, query, k=50, collections=[collection])
        return list(dict.fromkeys(each.document_id for each in found.passages))

    return {"words": words, "vectors": vectors, "both": both}


async def _measured(names: dict[str, str], items: Sequence[Item], ask: Ask) -> dict[str, float]:
    hits, ranks, seconds = 0, 0.0, []
    for item in items:
        begun = time.perf_counter()
        found = [names[each] for each in (await ask(item.query))[:DEEPEST]]
        seconds.append(time.perf_counter() - begun)
        hits += item.id in found[:FIRST]
        ranks += 1 / (found.index(item.id) + 1) if item.id in found else 0.0
    return {
        "hit": round(hits / len(items), 4),
        "mrr": round(ranks / len(items), 4),
        "ms": round(statistics.median(seconds) * 1000, 2),
    }


async def _answers(house: _House) -> list[dict[str, object]]:
    questions = json.loads((ROOT / "bench/answers/questions.json").read_text(encoding="utf-8"))
    caller = Principal(house.user_id, "bench", "user", frozenset(("predict", "read")), "token")
    rows: list[dict[str, object]] = []
    _say(f"{'language':<10}{'asked':>6}{'without':>9}{'with':>6}{'found':>7}   (right answers; found: the passage was shown)")
    for language, asked in questions.items():
        text = (ROOT / f"bench/answers/handbook.{language}.md").read_text(encoding="utf-8")
        await house.index(language, [("handbook.md", text)])
        right = {"without": 0, "with": 0, "found": 0}
        for question, expected in asked:
            for mode, wanted in (("without", None), ("with", (language,))):
                request = GenerationRequest(
                    (Message("user", question),), sampling=Sampling(temperature=0, max_tokens=96), documents=wanted
                )
                request = await house.services.recollection.recall(request, caller)
                completed = await house.services.models.answer(request, caller)
                right[mode] += bool(re.search(expected, completed.answer.text, re.IGNORECASE))
                if wanted is not None:
                    shown = " ".join(each.text for each in request.context.passages) if request.context else ""
                    right["found"] += bool(re.search(expected, shown, re.IGNORECASE))
        rows.append({"language": language, "asked": len(asked), **right})
        _say(f"{language:<10}{len(asked):>6}{right['without']:>9}{right['with']:>6}{right['found']:>7}")
    return rows


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

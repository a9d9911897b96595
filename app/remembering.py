"""Builds what the service remembers with: part of the composition root, which owns nothing either.

The embedder asks a model of this service, the indexer and the summaries work in the background, and everything forgets when a
person is erased.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from app.core import config
from app.core.metrics import Metrics
from app.core.settings import Settings
from app.core.types import GenerationRequest, Message, Sampling
from app.db.chunks import Chunks
from app.db.conversations import Conversations
from app.db.database import Database
from app.db.documents import Documents
from app.db.facts import Facts
from app.db.indexing import Indexing
from app.db.predictions import Predictions
from app.db.vectors import Vectors
from app.memory.conversations import ConversationMemory
from app.memory.documents import DocumentLibrary
from app.memory.embedding import ModelEmbedder
from app.memory.facts import FactMemory
from app.memory.indexing import Indexer, Surroundings
from app.memory.parsing.parser import Parser
from app.memory.recall import Recollection
from app.memory.search import Search
from app.memory.summaries import Summaries
from app.memory.vectors.base import VectorStore
from app.memory.vectors.stores import make_store
from app.models.model_manager import ModelManager
from app.providers.base import ProviderContext

_CALM: Final = 0.2
"""Sampling temperature of a summary."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of people. ``forget``: drops what was derived from one person's documents and facts."""

    conversations: ConversationMemory
    documents: DocumentLibrary
    facts: FactMemory
    recollection: Recollection
    vectors: VectorStore
    forget: Callable[[str], Awaitable[None]]


async def build(
    settings: Settings,
    database: Database,
    models: ModelManager,
    context: ProviderContext,
    metrics: Metrics,
    stack: contextlib.AsyncExitStack,
) -> Memory:
    """All of it, running; ``stack`` ends it. Raises ConfigurationError where the vector store is not to be had."""
    vectors = make_store(settings, Vectors(database), database)
    stack.push_async_callback(vectors.aclose)
    await vectors.open()
    embedder = ModelEmbedder(settings.memory, models.embed_version)

    async def forget_answers(user_id: str) -> None:
        embedder.forget(user_id)  # it may have made a vector of what is deleted
        await models.forget_answers(user_id)

    library = await _documents(settings, database, models, context, metrics, stack, embedder, vectors, forget_answers)
    facts = FactMemory(Facts(database), vectors, embedder, forget_answers=forget_answers)
    stack.push_async_callback(facts.aclose)
    await facts.start()
    kept, predictions = Conversations(database), Predictions(database)
    conversations = ConversationMemory(kept, predictions, settings.memory)
    summaries = Summaries(
        kept,
        predictions,
        settings.memory,
        _summariser(models),
        count=models.aside.count,
        remote=models.aside.remote,
    )
    stack.push_async_callback(summaries.aclose)
    await summaries.start()
    recollection = Recollection(
        settings.memory, documents=library, facts=facts, conversations=conversations, summaries=summaries
    )
    stack.push_async_callback(recollection.aclose)

    async def forget(user_id: str) -> None:
        embedder.forget(user_id)
        facts.forget(user_id)
        await vectors.forget(user_id)

    return Memory(conversations, library, facts, recollection, vectors, forget)


async def _documents(
    settings: Settings,
    database: Database,
    models: ModelManager,
    context: ProviderContext,
    metrics: Metrics,
    stack: contextlib.AsyncExitStack,
    embedder: ModelEmbedder,
    vectors: VectorStore,
    forget_answers: Callable[[str], Awaitable[None]],
) -> DocumentLibrary:
    uploads, files = settings.data_dir / "uploads", Documents(database)
    config.make_folder(uploads)
    indexer = Indexer(
        Indexing(database),
        files,
        parser=Parser(context.runtime_dir),
        embedder=embedder,
        around=Surroundings(context.runtime_dir, busy=models.busy, changed=models.forget_answers),
        metrics=metrics,
    )
    stack.push_async_callback(indexer.aclose)
    await indexer.start()
    return DocumentLibrary(
        store=files,
        search=Search(Chunks(database), embedder=embedder, vectors=vectors),
        indexer=indexer,
        embedder=embedder,
        vectors=vectors,
        folder=uploads,
        most_bytes=settings.memory.document_mb << 20,
        changed=forget_answers,
    )


def _summariser(models: ModelManager) -> Callable[[Sequence[Message], int, str, str], Awaitable[str]]:
    async def summarise(messages: Sequence[Message], max_tokens: int, user_id: str, model: str) -> str:
        sampling = Sampling(max_tokens=max_tokens, temperature=_CALM)
        request = GenerationRequest(tuple(messages), model, sampling, cache="off", no_examples=True)
        return (await models.aside.answer(request, user_id)).text

    return summarise

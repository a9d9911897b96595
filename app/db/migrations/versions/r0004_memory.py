"""What is remembered: documents and their chunks, facts, summaries of conversations; and the index of words over chunks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_FTS = (
    # External content and no positions: the index holds no second copy of a text, only which words stand in it. The triggers
    # keep it right whoever deletes a row, a cascade too.
    """CREATE VIRTUAL TABLE chunk_words USING fts5(
        scope, words, content='chunks', content_rowid='number', tokenize='ascii', detail='column'
    )""",
    """CREATE TRIGGER chunks_inserted AFTER INSERT ON chunks BEGIN
        INSERT INTO chunk_words(rowid, scope, words) VALUES (new.number, new.scope, new.words);
    END""",
    """CREATE TRIGGER chunks_deleted AFTER DELETE ON chunks BEGIN
        INSERT INTO chunk_words(chunk_words, rowid, scope, words) VALUES ('delete', old.number, old.scope, old.words);
    END""",
    """CREATE TRIGGER chunks_updated AFTER UPDATE OF scope, words ON chunks BEGIN
        INSERT INTO chunk_words(chunk_words, rowid, scope, words) VALUES ('delete', old.number, old.scope, old.words);
        INSERT INTO chunk_words(rowid, scope, words) VALUES (new.number, new.scope, new.words);
    END""",
)


def upgrade() -> None:
    """Adds the tables, which begin empty, and the summary of a conversation."""
    op.add_column("conversations", sa.Column("summary", sa.Text(), nullable=True))
    op.add_column("conversations", sa.Column("summary_until", sa.Text(), nullable=True))
    _documents()
    _chunks()
    _facts()
    op.create_table(
        "partitions",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "collection", name=op.f("pk_partitions")),
    )
    if op.get_bind().dialect.name == "sqlite":
        for statement in _FTS:
            op.execute(statement)
    else:
        op.execute("CREATE INDEX ix_chunks_words ON chunks USING gin (to_tsvector('simple', words))")


def _documents() -> None:
    op.create_table(
        "documents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("characters", sa.BigInteger(), nullable=False),
        sa.Column("space", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("claimed_until", sa.BigInteger(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_documents_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_documents")),
    )
    op.create_index(op.f("ix_documents_user_id_id"), "documents", ["user_id", "id"], unique=False)
    op.create_index(op.f("ix_documents_state"), "documents", ["state"], unique=False)
    op.create_table(
        "document_pieces",
        sa.Column("document_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"], ["documents.id"], name=op.f("fk_document_pieces_document_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("document_id", "position", name=op.f("pk_document_pieces")),
    )


def _chunks() -> None:
    op.create_table(
        "chunks",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("document_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("space", sa.Text(), nullable=True),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["document_id"], ["documents.id"], name=op.f("fk_chunks_document_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_chunks")),
        sa.UniqueConstraint("id", name=op.f("uq_chunks_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_chunks_document_id_position"), "chunks", ["document_id", "position"], unique=False)
    op.create_index(op.f("ix_chunks_user_id_collection_number"), "chunks", ["user_id", "collection", "number"], unique=False)
    op.create_index("ix_chunks_user_id_content_hash", "chunks", ["user_id", "content_hash"], unique=False)


def _facts() -> None:
    op.create_table(
        "facts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("prediction_id", sa.Text(), nullable=True),
        sa.Column("recalled_at", sa.BigInteger(), nullable=True),
        sa.Column("space", sa.Text(), nullable=True),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_facts_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_facts")),
    )
    op.create_index(op.f("ix_facts_user_id_id"), "facts", ["user_id", "id"], unique=False)

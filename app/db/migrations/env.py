"""What Alembic runs: the migrations on a connection that `app.db.migrate` made, in its transaction.

It opens no database of its own and reads no ini file; for a new revision see ``CONTRIBUTING.md``.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from app.db.schema import metadata


def run(connection: Connection) -> None:
    """Runs the revisions on ``connection``. DDL is transactional on both databases: a migration that fails leaves no trace."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])

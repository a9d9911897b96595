"""Predictions tell their price, cached prompt tokens, why another target answered, and the model's visible thinking.

What deleted ones have cost is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Adds the columns, and indexes over what has a price; rows of before have none, so the indexes begin empty."""
    op.add_column("predictions", sa.Column("cached_tokens", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("predictions", sa.Column("cost_nanousd", sa.BigInteger(), nullable=True))
    op.add_column("predictions", sa.Column("fallback", sa.Text(), nullable=True))
    op.add_column("predictions", sa.Column("reasoning", sa.Text(), nullable=False, server_default=sa.text("''")))
    priced = sa.text("cost_nanousd > 0")
    for name, columns in (("total", ["id"]), ("user", ["user_id", "id"]), ("key", ["key_id", "id"])):
        op.create_index(
            f"ix_predictions_spent_{name}",
            "predictions",
            [*columns, "cost_nanousd"],
            unique=False,
            sqlite_where=priced,
            postgresql_where=priced,
        )
    op.create_table(
        "erased_costs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erased_costs")),
    )
    op.create_index(op.f("ix_erased_costs_user_id_id"), "erased_costs", ["user_id", "id"], unique=False)
    op.create_index(op.f("ix_erased_costs_key_id_id"), "erased_costs", ["key_id", "id"], unique=False)

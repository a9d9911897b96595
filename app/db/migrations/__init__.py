"""Alembic's home: ``env.py`` and the revisions. Revisions only grow; none is edited after a release."""

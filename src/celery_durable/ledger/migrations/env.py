"""Alembic's environment: not used on its own; ``ledger.migrating`` runs the scripts on its connection."""

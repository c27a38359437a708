"""Migrations of the ledger, one for each of its revisions."""

"""Backups of a database: how they are taken, kept, found again, and put in its place."""

"""A worker (see there) that can be told to do what takes long, too."""

from __future__ import annotations

from .worker import main

if __name__ == "__main__":
    main("tests.process.big_verbs")

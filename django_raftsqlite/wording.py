"""Phrases of error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def kind(value: object) -> str:
    """The type of what was found, in words; never the value, which may be a secret."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        int: "an integer",
        float: "a number",
        bool: "a boolean",
    }
    return "null" if value is None else names.get(type(value), f"a value of type {type(value).__name__}")


def suggest(word: object, possibilities: Iterable[str]) -> str:
    """A "Did you mean ...?" with a space before it, or nothing."""
    close = get_close_matches(str(word), list(possibilities), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(words: Iterable[str]) -> str:
    """The words in quotes, separated by commas."""
    return ", ".join(f'"{word}"' for word in words)

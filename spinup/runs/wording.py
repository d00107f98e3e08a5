"""Errors in words, for messages of one line."""

from __future__ import annotations


def one_line(error: BaseException | str) -> str:
    """Returns what an error says in one line; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def plural(number: int, noun: str) -> str:
    """Returns ``"1 rank"``, ``"2 ranks"``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")

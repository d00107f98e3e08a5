"""Errors and numbers in words, for messages of one line."""

from __future__ import annotations

from spinup.runs.interrupts import Interrupted


def one_line(error: BaseException | str) -> str:
    """Returns what an error says in one line; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Returns an exception in one line with its type and notes, ``"ValueError: its message"``."""
    text = " ".join(str(error).split())
    if isinstance(error, Interrupted):
        return text
    name = type(error).__name__
    notes = "".join(f"; {one_line(note)}" for note in getattr(error, "__notes__", []))
    return (f"{name}: {text}" if text else name) + notes


def plural(number: int, noun: str) -> str:
    """Returns ``"1 rank"``, ``"2 ranks"``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")

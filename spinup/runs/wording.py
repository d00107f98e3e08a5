"""Formats errors, numbers and paths for messages of one line."""

from __future__ import annotations

import os
from pathlib import Path

from spinup.runs.interrupts import Interrupted


def one_line(error: BaseException | str) -> str:
    """Returns the message of an error in one line, or its type's name if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Returns an exception with its type and notes in one line: ``"ValueError: its message"``."""
    text = " ".join(str(error).split())
    if isinstance(error, Interrupted):
        return text
    name = type(error).__name__
    notes = "".join(f"; {one_line(note)}" for note in getattr(error, "__notes__", []))
    return (f"{name}: {text}" if text else name) + notes


def plural(number: int, noun: str) -> str:
    """Returns ``"1 rank"``, ``"2 ranks"``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def with_commas(number: float | None) -> str:
    """Returns a whole number with commas; an empty string for None.

    Example:
        >>> with_commas(12000.0)
        '12,000'
    """
    return "" if number is None else f"{number:,.0f}"


def short_return(value: float | None) -> str:
    """Formats a return with one decimal, or with three digits below one; empty for None.

    Example:
        >>> short_return(-1234.56), short_return(0.0952)
        ('-1,234.6', '0.0952')
    """
    if value is None:
        return ""
    return f"{value:,.1f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"


def clock(seconds: float | None) -> str:
    """Formats a duration as ``m:ss`` or ``h:mm:ss``.

    Example:
        >>> clock(59.6), clock(3725)
        ('1:00', '1:02:05')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_path(path: str | Path) -> str:
    """Returns the relative path if it is below the current directory, else the absolute path."""
    full = os.path.abspath(path)
    relative = os.path.relpath(full)
    return full if relative.startswith(os.pardir) else relative


# Codes of terminal colours, as in Spinning Up
_COLORS = dict(
    gray=30, red=31, green=32, yellow=33, blue=34, magenta=35, cyan=36, white=37, crimson=38
)


def colorize(string: str, color: str, bold: bool = False, highlight: bool = False) -> str:
    """Wraps a string in the terminal codes of a colour."""
    code = str(_COLORS[color] + 10 * highlight) + (";1" if bold else "")
    return f"\x1b[{code}m{string}\x1b[0m"

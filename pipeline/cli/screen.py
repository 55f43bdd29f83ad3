"""What reaches the terminal: nothing that could move its cursor, change its colours or reorder what was printed before."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["columns", "has_colour", "printable", "screen"]

_WIDE = 140


def printable(text: str) -> str:
    """The text, with every control and formatting character but line ends and tabs replaced by U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


def has_colour(is_terminal: bool) -> bool:
    """Whether to colour what goes there: a terminal that is not dumb, unless NO_COLOR is set (https://no-color.org)."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def screen() -> Console:
    """Standard output. Without a terminal to fit, wide enough for a log file; COLUMNS says otherwise."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(highlight=False, markup=False, emoji=False, no_color=not has_colour(sys.stdout.isatty()), width=width)


def columns(*titles: str, right: str = "", expand: bool = False) -> Table:
    """An empty table; the column called `right` holds numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=expand, show_lines=expand)
    for title in titles:
        table.add_column(title, overflow="fold", ratio=1 if expand else None, justify="right" if title == right else "left")
    return table

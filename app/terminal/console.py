"""Messages and progress for the user: bars on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

WIDEST = 200  # characters of a line of a table, where it is no terminal that shows it
LINE_EVERY_S = 5.0  # shortest time between two lines of progress


def say(text: str) -> None:
    """Print one line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """The progress of a piece of work; `advance` is cheap to call often."""

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done, self.note = description, total, 0, ""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count further `steps` as done; `note`, if any, is shown behind the bar."""
        self.done, self.note = self.done + steps, note or self.note


class _Lines(Progress):
    def __init__(self, description: str, total: int | None) -> None:
        super().__init__(description, total)
        self.printed_at = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        if time.monotonic() - self.printed_at >= LINE_EVERY_S:
            self.printed_at = time.monotonic()
            of = f"/{self.total}" if self.total else ""
            say(f"{self.description}: {self.done}{of} {self.note}".rstrip())


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Progress]:
    """Show the progress of the block; `total` steps are expected, None where that is unknown.

    Without a terminal, a last line says how long the block took.
    """
    start = time.monotonic()
    if not sys.stderr.isatty():
        lines = _Lines(description, total)
        yield lines
        say(f"{description}: done in {time.monotonic() - start:.1f} s {lines.note}".rstrip())
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, note="")

        class _Bar(Progress):
            def advance(self, steps: int = 1, note: str = "") -> None:
                super().advance(steps, note)
                bars.update(task, advance=steps, note=self.note)

        bar = _Bar(description, total)
        yield bar
        bars.update(task, completed=bar.total or 1, total=bar.total or 1)


def table(rows: Iterable[tuple[str, str]], title: str = "") -> None:
    """Print rows of name and value on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    pairs, console = list(rows), Console()
    grid = Table(show_header=False, box=None, title=title or None, title_justify="left", pad_edge=False)
    widest = max((len(name) for name, _ in pairs), default=0)
    grid.add_column(width=min(widest, console.width // 2), overflow="fold")  # a long path leaves values room
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), Text(value))  # brackets are text, as in [train]
    console.print(grid)


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a head on stdout; columns of numbers stand to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    cells = list(rows)
    for number, name in enumerate(head):
        numbers = all(row[number][:1] in "+-.0123456789" for row in cells)
        shown.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        shown.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else WIDEST).print(shown)

"""The live table of a run, and plain lines where there is no terminal. Both read the books; neither talks to a process
of the run.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from twinpod.cli.progress import Seen, read_progress
from twinpod.cli.words import duration, number
from twinpod.records.run import IterationRecord, Progress

LOOK_S = 1.0  # between two looks into the books
ROWS = 8  # newest iterations in the live table
NOTES = 3  # newest notes below it
COLUMNS = (
    *("iter", "reward", "right", "length", "tok/s"),
    *("generate", "train", "weights", "switch", "other", "total"),
)


class View(Protocol):
    """A `twinpod.local.Spectator` that can be closed."""

    def note(self, line: str) -> None:
        """Something happened that a person wants to know."""
        ...

    async def follow(self) -> None:
        """Shows progress until it is cancelled."""
        ...

    def close(self) -> None:
        """Shows the last state and leaves the terminal as it was."""
        ...


def make_view(job: str, books: Path, console: Console, *, live: bool) -> View:
    """The live table on a terminal, plain lines elsewhere or when asked for."""
    return LiveTable(job, books, console) if live and console.is_terminal else PlainLines(job, books, console)


class PlainLines:
    """One line an iteration, for logs and pipes."""

    def __init__(self, job: str, books: Path, console: Console) -> None:
        self._job, self._books, self._console = job, books, console
        self._told: float = 0.0  # commit time of the newest iteration that was told
        self._phase = ""

    def note(self, line: str) -> None:
        """Printed at once."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    async def follow(self) -> None:
        """Looks once a second."""
        first = read_progress(self._books)
        self._told = first.iterations[-1].committed_at if first and first.iterations else 0.0
        while True:
            self._tell()
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """The last iterations."""
        self._tell()

    def _tell(self) -> None:
        seen = read_progress(self._books)
        if seen is None:
            return
        for record in seen.iterations:
            if record.committed_at > self._told:
                self._told = record.committed_at
                self.note(plain_line(record, seen.progress))


def plain_line(record: IterationRecord, progress: Progress | None) -> str:
    """One committed iteration."""
    of = f"/{progress.iterations}" if progress else ""
    left = f", left {duration(progress.eta_s)}" if progress else ""
    s = record.seconds
    return (
        f"iteration {record.iteration}{of}: reward {number(record.reward, 3)}, right {number(record.right, 3)}, "
        f"length {number(record.length, 1)}, {s.total:.1f} s (generate {s.generate:.1f}, train {s.train:.1f}, "
        f"weights {s.weights:.1f}, switch {s.switch:.1f}, snapshot {s.snapshot:.1f}, other {s.other:.1f}){left}"
    )


class LiveTable:
    """The table that is drawn again in place once a second."""

    def __init__(self, job: str, books: Path, console: Console) -> None:
        self._job, self._books = job, books
        self._notes: deque[str] = deque(maxlen=NOTES)
        self._started = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()
        self._draw()

    def note(self, line: str) -> None:
        """Shown below the table; the newest few stay."""
        self._notes.append(line)
        self._draw()

    async def follow(self) -> None:
        """Draws once a second."""
        while True:
            self._draw()
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """The table stays as it is in the end."""
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        picture = picture_of(
            self._job, read_progress(self._books), tuple(self._notes), time.monotonic() - self._started
        )
        self._live.update(picture, refresh=True)


def picture_of(job: str, seen: Seen | None, notes: tuple[str, ...], running_s: float) -> RenderableType:
    """The whole picture; pure. `running_s`: seconds since this command began."""
    parts: list[RenderableType] = []
    if seen is None or seen.progress is None:
        parts.append(
            Text(f"{job}: starting, {duration(running_s)} (the processes import torch, SGLang and Megatron first)")
        )
    else:
        parts += [_headline(job, seen.progress, running_s), _bar(seen.progress), _state(seen.progress)]
    if seen is not None and seen.iterations:
        parts.append(_table(seen.iterations[-ROWS:]))
    parts += [Text(line, style="yellow", overflow="ellipsis", no_wrap=True) for line in notes]
    return Group(*parts)


def _headline(job: str, now: Progress, running_s: float) -> Text:
    text = Text(f"{job}  ", style="bold")
    text.append(f"iteration {min(now.iteration, now.iterations)} of {now.iterations}")
    text.append(f"   {now.state.lower()}", style="red" if now.state in ("Degraded", "Failed") else "green")
    text.append(f"   running {duration(running_s)}, left {duration(now.eta_s)}", style="dim")
    return text


def _bar(now: Progress) -> Padding:
    """Padded, because a bare bar does not end its line."""
    return Padding(ProgressBar(total=now.iterations, completed=max(0, now.iteration - 1), width=60), 0)


def _state(now: Progress) -> Text:
    text = Text(f"phase {now.phase}")
    if now.groups_wanted and now.groups_finished < now.groups_wanted:
        text.append(f" {now.groups_finished}/{now.groups_wanted} groups")
    text.append(f"   weights version {now.version}   {number(now.tokens_per_s, 0)} tokens/s")
    if now.waiting_for:
        text.append(f"   waiting for {now.waiting_for}", style="dim")
    if now.message:
        text.append(f"   {now.message}", style="red")
    return text


def _table(records: tuple[IterationRecord, ...]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for record in records:
        s = record.seconds
        speed = record.tokens_generated / s.generate if s.generate else float("nan")
        shown = (s.generate, s.train, s.weights, s.switch, s.snapshot + s.other, s.total)
        table.add_row(
            str(record.iteration),
            *(number(record.reward, 3), number(record.right, 3), number(record.length, 1), number(speed, 0)),
            *(f"{seconds:.2f}" for seconds in shown),
        )
    return table

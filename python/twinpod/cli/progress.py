"""What the live table and `status` read: a run's progress and its committed iterations, from the books."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from twinpod.errors import InputError
from twinpod.master.books_read import iterations, meta, open_read_only
from twinpod.records import codec
from twinpod.records.run import IterationRecord, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look into the books."""

    progress: Progress | None
    iterations: tuple[IterationRecord, ...]


def read_progress(books: Path) -> Seen | None:
    """None while there are no books yet; a database that is busy or half made is looked at again later."""
    with contextlib.suppress(InputError, sqlite3.OperationalError), contextlib.closing(open_read_only(books)) as db:
        text = meta(db, "progress", "")
        progress = codec.loads(Progress, text) if text else None
        return Seen(progress=progress, iterations=iterations(db))
    return None

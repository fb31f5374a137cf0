"""The file of the books: its lock, its tables, and whose it is."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twinpod.errors import EnvironmentFault, InputError, InUse
from twinpod.master import books_read as read
from twinpod.master.books_schema import SCHEMA, SCHEMA_VERSION

FILE = "books.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which job a folder belongs to: the parts of its spec that may not change between two starts, as JSON by name."""

    job: str
    fields: Mapping[str, str]


def connect(file: Path, identity: Identity) -> sqlite3.Connection:
    """A writer's connection; the tables are made where there are none. InputError: not this job's, or not
    this schema.
    """
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    _create_or_check(connection, file, identity)
    return connection


def lock_folder(folder: Path) -> IO[str]:
    """The folder's lock; it goes with the process, so a killed master leaves none behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "books.lock").open("a+")
    except OSError as error:
        raise EnvironmentFault(
            error.strerror or str(error), where=str(folder), mend="make the state folder writable"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise InUse(
            f"another master (process {holder}) works in this folder",
            where=str(folder),
            mend="stop it, or choose another folder",
        ) from error
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _create_or_check(db: sqlite3.Connection, file: Path, identity: Identity) -> None:
    where = str(file)
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found == 0:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif found != SCHEMA_VERSION:
        raise InputError(
            f"was written by another Twinpod (schema {found}, this one knows {SCHEMA_VERSION})",
            where=where,
            mend="go on with the Twinpod that wrote it, or begin in another folder",
        )
    stands: dict[str, str] = json.loads(read.meta(db, "identity", "{}"))
    wanted = dict(identity.fields)
    if not read.begun(db):  # nothing depends on them yet
        db.execute("BEGIN IMMEDIATE")
        if stands != wanted:
            db.execute("DELETE FROM data")
        set_meta(db, "job", identity.job)
        set_meta(db, "run", read.meta(db, "run", "") or secrets.token_hex(8))
        set_meta(db, "identity", json.dumps(wanted, sort_keys=True))
        db.execute("COMMIT")
        return
    if differ := sorted(name for name in stands.keys() | wanted.keys() if stands.get(name) != wanted.get(name)):
        raise InputError(
            f"belongs to another run: job {read.meta(db, 'job', '?')!r} with another {', '.join(differ)}",
            where=where,
            mend="undo the change, or choose another folder",
        )


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Write one value of the table meta."""
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))

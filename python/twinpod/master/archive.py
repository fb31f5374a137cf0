"""Old trajectories in Parquet files on the snapshots volume, one file an iteration.

    snapshots/trajectories/iteration-000012.parquet     what was trained in iteration 12, and what was given up by then

One row a trajectory, with its tokens, log-probs and where each part of them came from; `pandas.read_parquet` reads it.
A file has its name only when it is whole and durable. When and in which order they are written: `archiving`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinpod.errors import EnvironmentFault, InputError
from twinpod.master import books_read as read

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "trajectories"
GROUP_BYTES = 16 << 20  # of tokens and log-probs in one row group: what is in memory at a time
_COMPRESSION = "zstd"
_RUN = b"twinpod.run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trajectory."""

    trajectory_id: int
    group_id: int
    prompt_id: int
    epoch: int  # pass over the data set
    iteration: int | None  # trained in; None when it never was
    state: str  # of its group: trained or dropped
    reward: float | None
    correct: bool
    masked: str
    stop: str
    prompt: bytes  # int32
    tokens: bytes  # int32, everything after the prompt
    logps: bytes  # float32, of the generated tokens
    versions: tuple[int, ...]  # of each segment; 0: given
    counts: tuple[int, ...]  # tokens of each segment
    iterations: tuple[int, ...]  # in which each segment was generated
    pods: tuple[str, ...]  # which generated each segment


def file_of(folder: Path, iteration: int) -> Path:
    """Where the trajectories of an iteration go."""
    return folder / FOLDER / f"iteration-{iteration:06d}.parquet"


def write(file: Path, rows: Iterable[Row], run: str) -> int:
    """A new file of the run, durable when it has its name. Returns its rows; EnvironmentFault: no room."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial, count = file.with_name(f".{file.name}.part"), 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, _schema(run), compression=_COMPRESSION) as writer:
            for some in _bundles(rows):
                writer.write_table(pa.table(_columns(some), schema=_schema(run)))
                count += len(some)
        _make_durable(partial)
        partial.rename(file)
        _make_durable(file.parent)
    except OSError as error:
        raise EnvironmentFault(
            error.strerror or str(error), where=str(file), mend="give the snapshots volume room"
        ) from error
    return count


def group_ids(file: Path, run: str) -> tuple[int, ...]:
    """The groups that a file holds, in order; none when there is no file.

    EnvironmentFault when it cannot be read, InputError when another run wrote it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not file.exists():
        return ()
    try:
        table = pq.read_table(file, columns=["group_id"])
    except (OSError, pa.ArrowInvalid) as error:
        raise EnvironmentFault(f"cannot be read: {error}", where=str(file), mend="put it back as it was") from error
    if (table.schema.metadata or {}).get(_RUN) != run.encode():
        raise InputError(
            "was written by another run", where=str(file), mend="give this run a snapshots volume of its own"
        )
    return tuple(pc.unique(table["group_id"]).to_pylist())


def load_rows(db: sqlite3.Connection, groups: Iterable[int]) -> Iterator[Row]:
    """Every trajectory of some groups, one at a time."""
    for group_id in groups:
        prompt_id, number, state, prompt, iteration = db.execute(_GROUP, (group_id,)).fetchone()
        for one, reward, correct, masked, stop in db.execute(_TRAJECTORIES, (group_id,)).fetchall():
            _, segments = read.chain(db, one)
            places = db.execute(_PLACES, (one,)).fetchall()
            yield Row(
                trajectory_id=one,
                group_id=group_id,
                prompt_id=prompt_id,
                epoch=number,
                iteration=iteration,
                state=state,
                reward=reward,
                correct=bool(correct),
                masked=masked,
                stop=stop,
                prompt=prompt,
                tokens=b"".join(tokens.tobytes() for _, tokens, _ in segments),
                logps=b"".join(logps.tobytes() for _, _, logps in segments),
                versions=tuple(version for version, _, _ in segments),
                counts=tuple(len(tokens) for _, tokens, _ in segments),
                iterations=tuple(iteration for iteration, _ in places),
                pods=tuple(pod for _, pod in places),
            )


_GROUP = """
SELECT g.prompt_id, g.pass, g.state, p.tokens,
    (SELECT t.iteration FROM trained t WHERE t.prompt_id = g.prompt_id AND t.pass = g.pass AND t.rolled_back = 0
     AND t.group_id = g.group_id)
FROM groups g JOIN prompts p USING (prompt_id) WHERE g.group_id = ?
"""
_TRAJECTORIES = """
SELECT trajectory_id, reward, correct, masked, stop FROM trajectories WHERE group_id = ? ORDER BY trajectory_id
"""
_PLACES = "SELECT iteration, pod FROM segments WHERE trajectory_id = ? AND rolled_back = 0 ORDER BY idx"


def _bundles(rows: Iterable[Row]) -> Iterator[list[Row]]:
    some: list[Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row.tokens) + len(row.logps) + len(row.prompt)
        if size >= GROUP_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _schema(run: str) -> pa.Schema:
    import pyarrow as pa

    numbers, floats, large = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.int64())
    return pa.schema(
        [
            ("trajectory_id", pa.int64()), ("group_id", pa.int64()), ("prompt_id", pa.int64()), ("epoch", pa.int32()),
            ("iteration", pa.int64()), ("state", pa.string()), ("reward", pa.float64()), ("correct", pa.bool_()),
            ("masked", pa.string()), ("stop", pa.string()), ("prompt", numbers), ("tokens", numbers), ("logps", floats),
            ("versions", large), ("counts", large), ("iterations", large), ("pods", pa.list_(pa.string())),
        ],
        metadata={_RUN: run.encode()},
    )  # fmt: skip


def _columns(rows: list[Row]) -> dict[str, Any]:
    plain = ("trajectory_id", "group_id", "prompt_id", "epoch", "iteration", "state", "reward", "correct", "masked",
             "stop", "versions", "counts", "iterations", "pods")  # fmt: skip
    return {name: [getattr(row, name) for row in rows] for name in plain} | {
        name: _lists([np.frombuffer(getattr(row, name), dtype=kind) for row in rows], kind)
        for name, kind in (("prompt", "<i4"), ("tokens", "<i4"), ("logps", "<f4"))
    }


def _lists(arrays: list[Any], kind: str) -> Any:
    """A column of lists without an object a number."""
    import pyarrow as pa

    ends = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, np.concatenate([np.empty(0, dtype=kind), *arrays]))


def _make_durable(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handle)
        os.fsync(handle)

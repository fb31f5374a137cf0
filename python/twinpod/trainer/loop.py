"""The life of a rank.

Theory of operation
-------------------
All ranks run `serve` in step. Rank 0 alone hears commands: it asks its training half for the next one (a long poll)
and broadcasts it to the other ranks as bytes. Where a batch is needed, the first rank of each copy of the model
fetches its data-parallel rank's samples from the master and passes the messages on to the ranks of its copy as they
come: nobody ever holds more than its own samples. Every rank then executes the command, and every rank says how it
went, so that rank 0 reports a failure that happened anywhere. Between commands rank 0 broadcasts an empty message at
each turn of the long poll, so a rank never waits longer in a collective than one turn.

A `TwinpodError` is an answer: it is reported and the loop goes on. Anything else ends the process; torchrun then ends
the other ranks and the half answers the running command (a command's key makes asking again safe). Weights exist from
the first ONLOAD on.

SIGTERM keeps its default action: a rank may sit in a collective in C++, where no Python handler would run. Nothing
can be left half-written: folders are renamed into place, and an arena slot counts only once its record was reported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from twinpod.arena.layouts import reference
from twinpod.errors import InputError, NumericsError, ProtocolError, TwinpodError
from twinpod.records.codec import dumps, loads, plain
from twinpod.records.life import Command, Reply, Verb
from twinpod.records.training import RankBatch, TrainSettings
from twinpod.rpc.batches import BatchReader
from twinpod.trainer.export import export_folder
from twinpod.trainer.finite import first_not_finite
from twinpod.trainer.megatron import RankModel
from twinpod.trainer.memory import Memory
from twinpod.trainer.packing import DataLoader, largest_micro_batch
from twinpod.trainer.publish import Publisher
from twinpod.trainer.snapshot import load_snapshot, save_snapshot
from twinpod.trainer.step import train_iteration
from twinpod.trainer.wire import Control, Replica


class CommandSource(Protocol):
    """The training half, as rank 0 sees it."""

    def next_command(self, *, ready: bool) -> Command | None:
        """The next command, or None when a turn of the long poll went by without one."""

    def report(self, reply: Reply) -> None:
        """The outcome of the command of the same key."""


class BatchSource(Protocol):
    """The master, as the first rank of a copy of the model sees it."""

    def fetch(self, epoch: int, iteration: int) -> Iterator[bytes]:
        """This data-parallel rank's samples of an iteration, as the messages of `twinpod.rpc.batches`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """What a rank works with, wired in `__main__`. `fresh` fills the weights of a run that has no snapshot."""

    rank: RankModel
    control: Control
    replica: Replica
    memory: Memory
    settings: TrainSettings
    publishes: bool  # this rank belongs to the first copy of the model in its pod
    publisher: Callable[[], Publisher]
    fresh: Callable[[], None]
    config: dict[str, Any]  # config.json of the exported folder
    tokenizer: Path | None  # folder whose other files are exported beside it


@dataclass(slots=True)
class State:
    """What changes in a rank's life."""

    loaded: bool = False
    publisher: Publisher | None = None


def serve(duties: Duties, commands: CommandSource | None, batches: BatchSource | None) -> None:
    """Execute commands until EXIT; collective.

    `commands` is given on rank 0 alone, `batches` where the rank leads its replica.
    """
    state = State()
    while True:
        command, began = _next(duties, commands, state), time.perf_counter()
        if command is None:
            continue
        error = ""
        retryable = False
        detail = ""
        try:
            batch = _batch(duties, command, batches)
            detail = execute(duties, state, command, batch)
        except TwinpodError as failure:
            error, retryable = f"{type(failure).__name__}: {failure.line()}", failure.retryable
        answers = [json.loads(line) for line in duties.control.gather(json.dumps([error, retryable, detail]).encode())]
        if commands is not None:
            commands.report(_reply(command, answers, time.perf_counter() - began))
        if command.verb is Verb.EXIT:
            return


def execute(duties: Duties, state: State, command: Command, batch: RankBatch | None) -> str:
    """One command on one rank; returns this rank's share of the reply's detail (JSON or empty)."""
    if command.verb is Verb.EXIT:
        return ""
    if command.verb is Verb.ONLOAD:
        return _onload(duties, state, command)
    if command.verb not in (Verb.TRAIN, Verb.PUBLISH, Verb.OFFLOAD, Verb.SNAPSHOT, Verb.EXPORT):
        raise ProtocolError(f"the trainer does not know the verb {command.verb.value!r}", where=command.key)
    if not state.loaded:
        raise ProtocolError(
            f"{command.verb.value} before the weights were loaded",
            where=command.key,
            mend="order onload with an argument first",
        )
    if command.verb is Verb.OFFLOAD:
        return json.dumps({"held_bytes": duties.memory.offload()})
    duties.memory.require()
    if command.verb is Verb.TRAIN:
        assert batch is not None
        try:
            return dumps(train_iteration(duties.rank, batch, duties.settings))
        except NumericsError:
            state.loaded = False  # the weights may be bad: nobody publishes them, the next onload replaces them
            raise
    if command.verb is Verb.PUBLISH:
        return _publish(duties, state, command.version)
    folder = Path(_argument(command))
    if command.verb is Verb.SNAPSHOT:
        save_snapshot(duties.rank, duties.control, folder, iteration=command.iteration, version=command.version)
    else:
        export_folder(duties.rank, duties.control, folder, config=duties.config, tokenizer=duties.tokenizer)
    return ""


def _next(duties: Duties, commands: CommandSource | None, state: State) -> Command | None:
    message = b""
    if commands is not None:
        command = commands.next_command(ready=state.loaded)
        message = dumps(command).encode() if command else b""
    message = duties.control.broadcast(message)
    return loads(Command, message.decode()) if message else None


def _batch(duties: Duties, command: Command, batches: BatchSource | None) -> RankBatch | None:
    """This rank's samples for a TRAIN command. Any rank's failure to get them is every rank's failure."""
    if command.verb is not Verb.TRAIN:
        return None
    reader = BatchReader()
    messages = batches.fetch(command.epoch, command.iteration) if batches is not None else iter(())

    def finish() -> RankBatch:
        batch = reader.batch()
        if batch.iteration != command.iteration:
            raise ProtocolError(f"the master sent the batch of iteration {batch.iteration}", where=command.key)
        largest = largest_micro_batch(duties.settings, duties.rank.shape.max_positions)
        DataLoader(batch, duties.settings.mask, largest)  # what cannot be loaded is known before any rank trains
        return batch

    return duties.replica.relay(messages, reader.take, finish)


def _onload(duties: Duties, state: State, command: Command) -> str:
    """With an argument: the first weights, from a snapshot or fresh. Without: bring offloaded state back."""
    if not command.argument:
        if not state.loaded:
            raise ProtocolError(
                "nothing to bring back: no weights yet", where=command.key, mend="order onload with an argument first"
            )
        duties.memory.onload()
        return ""
    try:
        wish = json.loads(command.argument)
        folder = str(wish["snapshot"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{command.argument!r} is not like {{'snapshot': FOLDER or '', 'version': N}}", where=command.key
        ) from error
    duties.memory.onload()
    if folder:
        note = load_snapshot(duties.rank, duties.control, Path(folder))
        state.loaded = True
        return json.dumps(plain(note))
    duties.fresh()
    if name := first_not_finite(duties.rank.parameters):
        raise InputError(
            f"{name} holds a number that is not finite", where="spec.model", mend="begin from weights that are finite"
        )
    state.loaded = True
    return json.dumps({"iteration": 0, "version": int(wish.get("version", 0))})


def _publish(duties: Duties, state: State, version: int) -> str:
    """This rank's ShardRef as JSON; empty where another copy in the same pod publishes the same weights."""
    if not duties.publishes:
        return ""
    if state.publisher is None:
        state.publisher = duties.publisher()
    return dumps(reference(state.publisher.publish(version), state.publisher.layout_digest))


def _argument(command: Command) -> str:
    if not command.argument:
        raise InputError("needs a folder", where=command.key, mend=f"give {command.verb.value} a folder as argument")
    return command.argument


def _reply(command: Command, answers: list[list[Any]], seconds: float) -> Reply:
    """The first error of any rank; else rank 0's detail, or all ranks' shards for PUBLISH."""
    failed = next((answer for answer in answers if answer[0]), None)
    if failed is not None:
        return Reply(key=command.key, error=failed[0], retryable=failed[1], seconds=seconds, detail="")
    detail = answers[0][2]
    if command.verb is Verb.PUBLISH:
        detail = "[" + ",".join(answer[2] for answer in answers if answer[2]) + "]"
    if command.verb is Verb.OFFLOAD:
        detail = json.dumps({"held_bytes": [json.loads(answer[2])["held_bytes"] for answer in answers]})
    return Reply(key=command.key, error="", retryable=False, seconds=seconds, detail=detail)

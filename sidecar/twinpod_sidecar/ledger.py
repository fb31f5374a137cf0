"""What a half remembers of commands: the same key is executed once and answered the same again; an older epoch is
refused. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twinpod.errors import StaleEpoch
from twinpod.records.life import Command, Reply

REMEMBERED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The newest job epoch seen, the keys under way, the last replies (oldest first)."""

    epoch: int = 0
    running: frozenset[str] = frozenset()
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True, slots=True)
class New:
    """Execute it."""


@dataclass(frozen=True, slots=True)
class Running:
    """It is being executed: wait for that."""


@dataclass(frozen=True, slots=True)
class Known:
    """It was executed: this was the answer."""

    reply: Reply


Verdict = New | Running | Known


def admit(ledger: Ledger, command: Command) -> tuple[Ledger, Verdict]:
    """What to do with a command. StaleEpoch when a newer master has been heard."""
    if command.epoch < ledger.epoch:
        raise StaleEpoch(
            f"epoch {command.epoch} is over, epoch {ledger.epoch} commands here",
            where=f"command {command.key}",
            mend="another master runs this job; end this one",
        )
    ledger = replace(ledger, epoch=command.epoch)
    if command.key in ledger.running:
        return ledger, Running()
    if known := next((reply for reply in ledger.replies if reply.key == command.key), None):
        return ledger, Known(known)
    return replace(ledger, running=ledger.running | {command.key}), New()


def settle(ledger: Ledger, reply: Reply) -> Ledger:
    """Note the answer of a running command; the oldest of more than `REMEMBERED` answers is forgotten."""
    return replace(ledger, running=ledger.running - {reply.key}, replies=(*ledger.replies, reply)[-REMEMBERED:])

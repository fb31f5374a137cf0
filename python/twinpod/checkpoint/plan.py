"""What to fetch and from whom. Pure: no clock, no sockets, no shared memory.

The contract between the master, who orders SERVE, and an inference half:

- The argument of SERVE is a `ServeOrder` as JSON. Layouts that it names and the half does not know are had from the
  same halves as the shards (`layouts`).
- A shard whose record has this half's own host in `address` (or no address) lies in this pod and is mapped from its
  `path`. Every other shard is fetched, whatever its path says: pods use the same paths.
- A shard may be asked of the half that its record names and of every half that `sources` names for its owner. A half
  that does not have it says so; being named there promises nothing. What identifies a shard is the version and the
  digest, so a data-parallel copy of another pod is as good.
- Who has a shard: the training half of the pod of rank 0, from the end of PUBLISH of version v to the begin of
  PUBLISH of v + 2; an inference half, for the shards of its own pod, once it has proved them for a SERVE, and for
  those that it fetched, once their digest was right.
- The reply's detail has `fetch_s` and `fetch_bytes`, 0 when nothing was fetched. When the shards cannot be had the
  reply is a retryable error that names every source with its last word, and the half serves nothing.

A *transfer* is one shard on its way. It remembers how far it got and what each source did; `next_move` says what to do
now. Bytes are kept when a source breaks off and the next one goes on behind them, until a digest has been found wrong:
then the transfer begins anew, and from then on takes a shard from one source alone, so that who lied is known.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from twinpod.records.weights import ServeRequest, ShardRecord, WeightVersion

TRIES = 5  # failures in a row of one source, without a byte between, after which it is not asked again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A half that may have the shard, as this transfer knows it."""

    address: str
    failures: int = 0  # in a row
    retry_at: float = 0.0  # on the caller's clock
    lied: bool = False  # all bytes of a wrong digest were its own
    last: str = ""  # what it said, or how it broke off


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One shard on its way. Invariant: the bytes `[0, done)` are in the slot and came from `givers`, in that order."""

    shard: ShardRecord
    end: int  # bytes to fetch
    sources: tuple[Source, ...]
    done: int = 0
    givers: tuple[str, ...] = ()
    mixing: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `address` for the bytes from `begin` on."""

    address: str
    begin: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Every source that is left wants a pause."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """All bytes are here: take their digest."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No source is left."""

    why: str


Move = Ask | Wait | Check | GiveUp


def host_of(address: str) -> str:
    """Without the port."""
    return address.rpartition(":")[0]


def is_here(address: str, host: str) -> bool:
    """Whether a shard with this address lies in the pod that others reach by `host`."""
    return not address or host_of(address) == host


def shards_away(version: WeightVersion, host: str) -> tuple[ShardRecord, ...]:
    """Those that have to be fetched."""
    return tuple(shard for shard in version.shards if not is_here(shard.address, host))


def plan_fetch(serving: ServeRequest, host: str) -> tuple[Transfer, ...]:
    """A transfer for each shard that is not in the pod, none begun.

    The order of the sources is another one for each receiver and shard, so that many receivers spread over them.
    """
    named: dict[str, list[str]] = {}
    for source in serving.sources:
        named.setdefault(source.owner, []).extend(source.addresses)
    return tuple(
        Transfer(
            shard=shard,
            end=max((part.offset + part.nbytes for part in shard.layout.parts), default=0),
            sources=_spread((shard.address, *named.get(shard.layout.owner, ())), host, shard.layout.owner),
        )
        for shard in shards_away(serving.weights, host)
    )


def _spread(addresses: Iterable[str], host: str, owner: str) -> tuple[Source, ...]:
    others = [address for address in dict.fromkeys(addresses) if host_of(address) != host]
    first = zlib.crc32(f"{host} {owner}".encode()) % len(others) if others else 0
    return tuple(Source(address=address) for address in (*others[first:], *others[:first]))


def next_move(transfer: Transfer, now: float) -> Move:
    """What to do now. The source with the fewest failures in a row goes first, then the order of the plan."""
    if transfer.done >= transfer.end:
        return Check()
    left = [source for source in transfer.sources if not source.lied and source.failures < TRIES]
    if not left:
        words = "; ".join(f"{source.address}: {source.last or 'not asked'}" for source in transfer.sources)
        return GiveUp(words or "nobody is named who has it")
    ready = [source for source in left if source.retry_at <= now]
    if not ready:
        return Wait(min(source.retry_at for source in left) - now)
    chosen = min(ready, key=lambda source: source.failures)
    goes_on = transfer.mixing or transfer.givers in ((), (chosen.address,))
    return Ask(chosen.address, transfer.done if goes_on else 0)


def asked(transfer: Transfer, ask: Ask) -> Transfer:
    """The source is being asked: what it does not go on from is given up."""
    if ask.begin == transfer.done:
        return transfer
    return replace(transfer, done=0, givers=())


def received(transfer: Transfer, address: str, nbytes: int) -> Transfer:
    """So many bytes more lie in the slot."""
    givers = transfer.givers if transfer.givers[-1:] == (address,) else (*transfer.givers, address)
    return replace(_with(transfer, address, failures=0, retry_at=0.0), done=transfer.done + nbytes, givers=givers)


def failed(transfer: Transfer, address: str, why: str, now: float) -> Transfer:
    """The source refused, broke off or was silent: it gets a pause, longer each time."""
    failures = 1 + next(source.failures for source in transfer.sources if source.address == address)
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures - 1))
    return _with(transfer, address, failures=failures, retry_at=now + pause, last=why)


def disproved(transfer: Transfer, found: str) -> Transfer:
    """All bytes came, and their digest is `found`, which is wrong: begin anew; a single giver is not asked again."""
    givers = set(transfer.givers)
    word = f"its bytes have the digest {found}, {transfer.shard.digest} was published"
    for address in givers:
        transfer = _with(transfer, address, lied=len(givers) == 1, last=word)
    return replace(transfer, done=0, givers=(), mixing=False)


def _with(transfer: Transfer, address: str, **changes: object) -> Transfer:
    return replace(
        transfer,
        sources=tuple(
            replace(source, **changes) if source.address == address else source  # type: ignore[arg-type]
            for source in transfer.sources
        ),
    )

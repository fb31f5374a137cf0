"""What the worker needs of others: a master, an engine, and word of which engine serves. The adapters are wired in
`__main__`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import PullRequest, WorkBatch, WorkResult

__all__ = [
    "EngineEndpoint",
    "EngineOutput",
    "EnginePort",
    "EngineRequest",
    "EngineSource",
    "Finish",
    "MasterPort",
]


class Finish(StrEnum):
    """How a generation stands."""

    RUNNING = "running"  # tokens so far; more will come
    STOP = "stop"  # a stop token, which is the last of the tokens
    LENGTH = "length"  # as many tokens as asked for, or as the engine has room for
    ABORT = "abort"  # cut; the tokens so far are good
    FAILED = "failed"  # refused or broken; the tokens are not to be used


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One sequence to go on with."""

    name: str  # unique among running ones; no name is the beginning of another
    tokens: TokenIds  # prompt and everything generated before
    max_new_tokens: int
    temperature: float
    top_p: float
    stop_token_ids: tuple[int, ...]
    seed: int  # of its draws; with the position of a token it names the draw, whatever runs beside it
    report_every: int  # fewest tokens between two RUNNING outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutput:
    """What came of a request so far: all its new tokens, not only the latest."""

    name: str
    tokens: TokenIds
    logps: LogProbs  # one a token, at the sampling temperature
    finish: Finish
    version: int  # weights that made the tokens; -1 when they are of several versions
    message: str = ""  # why it FAILED


class EnginePort(Protocol):
    """One engine. Its methods raise EngineFault or Unreachable when it is gone or refuses."""

    def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        """Outputs in the order in which they come; ends after every request has had its last one."""
        ...

    async def abort(self, name: str) -> None:
        """Cut one request; its last output still comes."""
        ...

    async def abort_all(self) -> None:
        """Cut everything that runs or waits now; requests that are on their way may be missed."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEndpoint:
    """The engines that serve, as the inference half announces them: one, or several with the same weights."""

    urls: tuple[str, ...]
    api_key: str
    version: int


class EngineSource(Protocol):
    """Word of the engine beside the worker."""

    def current(self) -> EngineEndpoint | None:
        """The engine that serves now; None while there is none."""
        ...

    async def changed(self, old: EngineEndpoint | None) -> EngineEndpoint | None:
        """Wait until the word is another one than `old`, and return it."""
        ...

    def connect(self, serving: EngineEndpoint) -> EnginePort:
        """A port to that engine."""
        ...


class MasterPort(Protocol):
    """The central master. Its methods raise Unreachable (ask again) or StaleEpoch (what was sent belongs to an older
    master).
    """

    async def pull(self, pull: PullRequest) -> WorkBatch:
        """Long poll for work."""
        ...

    async def give(self, epoch: int, results: Sequence[WorkResult]) -> None:
        """Hand results over; on return they are stored. Safe to repeat."""
        ...

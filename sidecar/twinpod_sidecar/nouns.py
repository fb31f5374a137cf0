"""The words of the inference half's machine: its state, what may happen to it (events), what it may order (acts)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twinpod.records.life import Command, EngineState, LifeCycle


class Goal(StrEnum):
    """Where the engine is wanted."""

    REST = "rest"
    PREPARED = "prepared"
    SERVING = "serving"
    EXIT = "exit"


class Stage(StrEnum):
    """Whether the wanted weights' shards lie in this pod."""

    AWAY = "away"
    RUNNING = "running"
    HERE = "here"


class Proof(StrEnum):
    """Whether the wanted weights hash to their digests."""

    NONE = "none"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Identity of weights: a version number alone may be published again by a later epoch."""

    version: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The half at one moment. Invariant: SERVING only with `loaded` weights that were proved since the engine's
    start.
    """

    life: LifeCycle
    goal: Goal = Goal.REST
    engine: EngineState = EngineState.NONE
    run: int = 0  # number of the engine's start; events of older runs are ignored
    standby: bool = False  # ready to fork
    wanted: Weights | None = None
    stage: Stage = Stage.HERE  # of `wanted`; nothing is proved or loaded before
    proof: Proof = Proof.NONE
    loaded: Weights | None = None  # observed in the engine
    pending: tuple[Command, ...] = ()
    attempt: int = 0  # engines that died without being told to
    failures: int = 0  # in a row
    message: str = ""


# ---- events


@dataclass(frozen=True, slots=True)
class Ordered:
    """A new command; `weights` with SERVE, and whether shards of them are `away`, in other pods."""

    command: Command
    weights: Weights | None = None
    away: bool = False


@dataclass(frozen=True, slots=True)
class StandbyReady:
    """It can fork engines."""


@dataclass(frozen=True, slots=True)
class StandbyDied:
    """It is gone, and every engine of it."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineUp:
    """Healthy (started, or its memory resumed); its weights are unknown."""

    run: int


@dataclass(frozen=True, slots=True)
class EngineAsleep:
    """Its memory is released."""

    run: int


@dataclass(frozen=True, slots=True)
class EngineFaulty:
    """It refused, hung, did not come up, or serves what it should not: not to be trusted any more, perhaps alive."""

    run: int
    error: str


@dataclass(frozen=True, slots=True)
class EngineDied:
    """Observed gone without being told to."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class EngineGone:
    """Observed gone, as ordered."""

    run: int


@dataclass(frozen=True, slots=True)
class Staged:
    """Every shard lies in this pod."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class StagingFailed:
    """Nobody gave them, or there is no room. `error`: `ClassName: line`."""

    weights: Weights
    error: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Proved:
    """Every shard hashes to its digest."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class Disproved:
    """They do not, or cannot be read. `error`: `ClassName: line`."""

    weights: Weights
    error: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine was observed to have them."""

    run: int
    weights: Weights


@dataclass(frozen=True, slots=True)
class Expired:
    """A command's deadline is over."""

    key: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM."""


Event = (
    Ordered | StandbyReady | StandbyDied | EngineUp | EngineAsleep | EngineFaulty | EngineDied | EngineGone
    | Staged | StagingFailed | Proved | Disproved | Loaded | Expired | Terminate
)  # fmt: skip

# ---- acts


@dataclass(frozen=True, slots=True)
class StartStandby:
    """After `pause_s` seconds."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Answered by EngineUp, EngineFaulty or EngineDied."""

    run: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class StopEngine:
    """Kill it; answered by EngineGone when observed gone."""

    run: int


@dataclass(frozen=True, slots=True)
class WakeEngine:
    """Resume its memory; answered by EngineUp or EngineFaulty."""

    run: int


@dataclass(frozen=True, slots=True)
class ReleaseEngine:
    """Abort what runs and release its memory; answered by EngineAsleep or EngineFaulty."""

    run: int


@dataclass(frozen=True, slots=True)
class AbortAll:
    """Cut what it generates."""

    run: int


@dataclass(frozen=True, slots=True)
class StageShards:
    """Fetch what is not here; answered by Staged or StagingFailed."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class StopStaging:
    """Cut the fetch that runs; what has come is kept."""


@dataclass(frozen=True, slots=True)
class Prove:
    """Hash the shards; answered by Proved or Disproved."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class Load:
    """Abort what runs, load, observe; answered by Loaded or EngineFaulty."""

    run: int
    weights: Weights


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the rollout worker where the engine is and what it serves."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the rollout worker that there is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a command; no error means done."""

    command: Command
    error: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """Nothing is left to do: end the process."""


Act = (
    StartStandby | StartEngine | StopEngine | WakeEngine | ReleaseEngine | AbortAll | StageShards | StopStaging | Prove
    | Load | Announce | Withdraw | Answer | End
)  # fmt: skip
Step = tuple[State, tuple[Act, ...]]

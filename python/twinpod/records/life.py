"""Halves, phases, commands and statuses: the words of the checkpoint-engine's protocol."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LONGEST_ORDER_S = 3600.0  # deadline of a snapshot or an export: hundreds of gigabytes to a network file system


class HalfKind(StrEnum):
    """Which side of a pod a half is."""

    TRAINING = "training"
    INFERENCE = "inference"


class LifeCycle(StrEnum):
    """What becomes of the engine when a rollout phase ends (design 3)."""

    RESTART = "Restart"  # killed; a standby forks the next one
    SLEEP = "Sleep"  # gives its memory back, keeps its processes
    KEEP = "Keep"  # stays up


class Verb(StrEnum):
    """Commands that the master gives to halves; each carries an idempotency key."""

    # inference half
    PREPARE = "prepare"  # have an engine up with whatever weights; does not serve
    SERVE = "serve"  # stage and load `version`, then serve it
    REST = "rest"  # end of the rollout phase: free what the trainer needs, by life cycle
    # training half
    TRAIN = "train"  # one iteration over the batch that the master holds
    PUBLISH = "publish"  # write the weights as `version` into the arena
    OFFLOAD = "offload"
    ONLOAD = "onload"
    SNAPSHOT = "snapshot"  # durable resume state into a folder
    EXPORT = "export"  # Hugging Face folder
    # both
    EXIT = "exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One order of the master to a half. The same key is executed once and answered the same again."""

    key: str  # idempotency key: epoch/iteration/verb/...
    verb: Verb
    epoch: int  # job epoch of the sender (design 8.5)
    iteration: int
    version: int  # weights concerned; 0 where none
    argument: str  # folder for SNAPSHOT and EXPORT, ServeOrder JSON for SERVE; else empty
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The outcome of a command. `error` empty means done."""

    key: str
    error: str
    retryable: bool
    seconds: float
    detail: str  # JSON: TrainStats for TRAIN, ShardRefs for PUBLISH, seconds a part for SERVE


class EngineState(StrEnum):
    """Life of the engine under an inference half."""

    NONE = "none"
    STARTING = "starting"
    IDLE = "idle"  # healthy, weights unknown or old
    LOADING = "loading"
    SERVING = "serving"
    STOPPING = "stopping"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfStatus:
    """What a half says of itself, in etcd and by gRPC."""

    pod: str
    kind: HalfKind
    address: str  # host:port of its gRPC service
    state: str  # EngineState value, or the trainer's phase
    version: int  # observed weight version; 0 when none
    epoch: int
    pod_attempt: int  # of pods of one name, the one with the highest is meant
    attempt: int  # restarts of the engine or of the ranks
    message: str

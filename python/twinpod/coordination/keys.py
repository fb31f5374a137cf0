"""Names of all etcd keys of a job, in one place, and the small records that live under them."""

from __future__ import annotations

from dataclasses import dataclass

from twinpod.records.life import HalfKind

MEMBER_LEASE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Key names of one job. The uid keeps a job that was deleted and made again apart from its namesake."""

    namespace: str
    job_uid: str

    @property
    def prefix(self) -> str:
        """Everything of the job begins with it."""
        return f"/twinpod/{self.namespace}/{self.job_uid}/"

    @property
    def epoch(self) -> str:
        """Job epoch: a decimal number, one more at each start of a master."""
        return self.prefix + "epoch"

    @property
    def version(self) -> str:
        """`VersionNote`: the newest committed weights."""
        return self.prefix + "version"

    @property
    def operation(self) -> str:
        """`Operation`: what the job is doing."""
        return self.prefix + "operation"

    @property
    def progress(self) -> str:
        """What the operator and the command line show; the master's record."""
        return self.prefix + "progress"

    @property
    def members(self) -> str:
        """Prefix of all `HalfStatus` entries."""
        return self.prefix + "members/"

    def member(self, pod: str, kind: HalfKind) -> str:
        """`HalfStatus` of one half, under a lease of `MEMBER_LEASE_S`."""
        return f"{self.members}{pod}/{kind.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionNote:
    """The committed version, as etcd keeps it: no shard records, only who has them."""

    version: int
    epoch: int
    iteration: int
    digest: str
    owners: tuple[str, ...]  # addresses (host:port) of the halves that have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the job is doing now."""

    epoch: int
    iteration: int
    phase: str
    version: int
    since: float  # unix seconds

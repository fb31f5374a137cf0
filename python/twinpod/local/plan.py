"""What local mode makes of a pod manifest: the nouns. Pure; `manifest.py` reads manifests into them, `pods.py` executes
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class VolumeKind(StrEnum):
    """Where a volume's bytes come from."""

    MEMORY = "memory"  # tmpfs of a fixed size, as long as the pod lives
    FOLDER = "folder"  # emptyDir on disk, as long as the pod lives
    CONFIG = "config"  # ConfigMap
    SECRET = "secret"  # noqa: S105 - the kind, not a secret
    CLAIM = "claim"  # PersistentVolumeClaim: a folder of the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume of a pod."""

    name: str
    kind: VolumeKind
    source: str  # name of the ConfigMap, Secret or claim; empty for the others
    size: int  # bytes; 0: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Where a container sees a volume."""

    volume: str
    path: str
    sub_path: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question that the kubelet, here local mode, asks a container. `port` 0 and a `command`: an exec probe."""

    port: int
    path: str  # HTTP path; empty: a TCP connection is enough
    initial_delay_s: float
    period_s: float
    timeout_s: float
    failures: int  # so many in a row are a verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a pod."""

    name: str
    command: tuple[str, ...]  # command and args, with $(NAME) expanded
    environment: tuple[tuple[str, str], ...]
    folder: str  # workingDir; empty: where `twinpod run` was called
    mounts: tuple[Mount, ...]
    ports: tuple[int, ...]
    startup: Probe | None
    liveness: Probe | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod: sidecars start first, in order, and are restarted; then `steps` run to their ends; then `containers`,
    each once.
    """

    name: str
    names: tuple[str, ...]  # every DNS name that other pods may use
    volumes: tuple[Volume, ...]
    sidecars: tuple[Container, ...]
    steps: tuple[Container, ...]
    containers: tuple[Container, ...]
    grace_s: float

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that a container of the pod declares."""
        return tuple(port for part in (*self.sidecars, *self.steps, *self.containers) for port in part.ports)

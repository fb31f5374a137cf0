"""Volumes of a run as folders and tmpfs in the launcher's private namespace, and the places where containers see them.

A container mounts a volume where its manifest says, for example at /etc/twinpod/job, which this machine does not have.
The launcher lays an overlay (upper layer in memory) over the nearest folder that exists, here /etc, and makes the place
in it. It does so in its own mount namespace: the machine itself never sees any of it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from twinpod.api.types import RLJob
from twinpod.errors import EnvironmentFault, InputError
from twinpod.local.folder import RunFolder
from twinpod.local.isolation import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, mount
from twinpod.local.plan import Container, Pod, Volume, VolumeKind
from twinpod.local.processes import Sight


class Volumes:
    """All volumes of a run. Life: `lay_ground` once, then `renew` at each start of a pod; the mounts end with the
    namespace.
    """

    def __init__(self, folder: RunFolder, claims: Mapping[str, Path], keep: tuple[str, ...] = ()) -> None:
        self._folder, self._claims, self._keep = folder, claims, keep
        self._private = folder.root / ".mounts"
        self._mounted: set[Path] = set()

    def lay_ground(self, pods: Sequence[Pod]) -> None:
        """Makes every mount path of every container exist, in this namespace only."""
        self._private.mkdir(exist_ok=True)
        mount("tmpfs", str(self._private), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700")
        run_handle = os.open(self._folder.root, os.O_PATH)
        paths = {Path(part.path) for pod in pods for container in containers_of(pod) for part in container.mounts}
        grounds: list[Path] = []
        for path in sorted(paths):
            if path.exists():
                continue
            if not any(path.is_relative_to(ground) for ground in grounds):
                ground = next(parent for parent in path.parents if parent.is_dir())
                grounds.append(ground)
                self._overlay(ground, len(grounds))
                if self._folder.root.is_relative_to(ground):  # the run's own files must not land in memory
                    mount(f"/proc/self/fd/{run_handle}", str(self._folder.root), flags=MS_BIND | MS_REC)
            path.mkdir(parents=True)
        os.close(run_handle)

    def _overlay(self, ground: Path, number: int) -> None:
        upper, work = self._private / f"upper-{number}", self._private / f"work-{number}"
        upper.mkdir()
        work.mkdir()
        mount("overlay", str(ground), "overlay", 0, f"lowerdir={ground},upperdir={upper},workdir={work}")

    def renew(self, pod: Pod) -> None:
        """Fresh emptyDirs, as a new pod gets them. What the last one wrote to disk is kept once, as NAME.previous."""
        for volume in pod.volumes:
            path = self.path(pod, volume)
            if volume.kind is VolumeKind.MEMORY:
                self._renew_memory(path, volume)
            elif volume.kind is VolumeKind.FOLDER:
                previous = path.with_name(f"{path.name}.previous")
                if path.exists():
                    shutil.rmtree(previous, ignore_errors=True)
                    path.rename(previous)
                path.mkdir(parents=True)
            elif not path.is_dir():
                raise InputError(
                    f"volume {volume.name} is the {volume.kind} {volume.source}, which local mode does not have",
                    where=f"Pod {pod.name}",
                    mend="run the job on Kubernetes",
                )

    def _renew_memory(self, path: Path, volume: Volume) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if path not in self._mounted:
            limit = f"size={volume.size}" if volume.size else "size=50%"
            mount("tmpfs", str(path), "tmpfs", MS_NOSUID | MS_NODEV, f"{limit},mode=1777")
            self._mounted.add(path)
            return
        _remove_all(path)

    def empty(self, pod: Pod) -> None:
        """Gives the memory of a pod's volumes back."""
        for volume in pod.volumes:
            if volume.kind is VolumeKind.MEMORY and self.path(pod, volume) in self._mounted:
                _remove_all(self.path(pod, volume))

    def path(self, pod: Pod, volume: Volume) -> Path:
        """Where the launcher has the volume."""
        match volume.kind:
            case VolumeKind.MEMORY:
                return self._private / pod.name / volume.name
            case VolumeKind.FOLDER:
                return self._folder.pods / pod.name / volume.name
            case VolumeKind.CONFIG:
                return self._folder.config / volume.source
            case VolumeKind.SECRET:
                return self._folder.secrets / volume.source
            case VolumeKind.CLAIM:
                return self._claims.get(volume.source, self._folder.root / "claims" / volume.source)

    def sight(self, pod: Pod, container: Container) -> Sight:
        """Every mount of a container, outer paths first, the hosts file last."""
        volumes = {volume.name: volume for volume in pod.volumes}
        binds = []
        for part in sorted(container.mounts, key=lambda one: one.path):
            if part.volume not in volumes:
                raise InputError(
                    f"mounts the volume {part.volume}, which the pod does not have", where=f"Pod {pod.name}"
                )
            volume = volumes[part.volume]
            source = self.path(pod, volume) / part.sub_path
            source.mkdir(parents=True, exist_ok=True)
            fixed = volume.kind in (VolumeKind.CONFIG, VolumeKind.SECRET)
            binds.append((str(source), part.path, part.read_only or fixed))
        hosts = (str(self._folder.config / "hosts"), "/etc/hosts", True)
        return Sight(binds=(*binds, hosts), keep=self._keep)


def _remove_all(folder: Path) -> None:
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def containers_of(pod: Pod) -> tuple[Container, ...]:
    """All containers of a pod, whatever their part."""
    return (*pod.sidecars, *pod.steps, *pod.containers)


def needed_paths(job: RLJob) -> tuple[str, ...]:
    """What every process of a run reads in place: Python, this checkout, the working directory, what the job names.

    A folder may hold links to files elsewhere (a snapshot in a Hugging Face cache leads to ../../blobs): these, too.
    """
    model, data = job.spec.model, job.spec.dataset
    folders = [path for path in (model.from_, model.tokenizer.path if model.tokenizer else None) if path]
    files = [data.json_lines.path] if data.json_lines else []
    named = [os.path.abspath(path) for path in (*folders, *files)]
    every = [sys.prefix, sys.base_prefix, *sys.path, os.getcwd(), *named]
    linked = (link for folder in folders if os.path.isdir(folder) for link in _linked_files(folder))
    return tuple(dict.fromkeys(path for path in (*every, *linked) if path and os.path.exists(path)))


def _linked_files(folder: str) -> Iterator[str]:
    """Where the links in a folder lead to, when that is outside of it."""
    inside = os.path.realpath(folder) + os.sep
    for entry in os.scandir(folder):
        if entry.is_symlink() and not (real := os.path.realpath(entry.path)).startswith(inside):
            yield real


def check_memory(pods: Sequence[Pod]) -> None:
    """EnvironmentFault when the pods' shared memory together is more than the machine has free."""
    wanted = sum(volume.size for pod in pods for volume in pod.volumes if volume.kind is VolumeKind.MEMORY)
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    if wanted > free:
        raise EnvironmentFault(
            f"the pods ask for {wanted / 2**30:.1f} GiB of shared memory, the machine has {free / 2**30:.1f} GiB free",
            where="spec.hybrid.sharedMemory",
            mend="lower it, or free memory",
        )

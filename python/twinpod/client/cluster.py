"""A job on a cluster, from outside: its status, what its books say, its logs, its trained model.

Books and models lie on the job's volumes. While the master runs they are read in its pod; afterwards in a reader pod,
which is made for the call and removed after it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinpod.api import names
from twinpod.api.load import check
from twinpod.api.names import Condition
from twinpod.api.reading_place import ReadingPlace, from_text, place_of
from twinpod.api.types import RLJob
from twinpod.client.kubectl import Kubectl, fault_of
from twinpod.client.reader import reader_name, reader_pod
from twinpod.errors import EnvironmentFault, InputError

RESOURCE = "rljobs.twinpod.dev"
READER_START_S = 120
MOST_STREAMS = 64  # containers that one kubectl follows
EXPORT = f"{names.SNAPSHOTS_FOLDER}/export"
_SEND = (
    "import sys, tarfile\n"
    "with tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as archive: archive.add(sys.argv[1], arcname='.')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob:
    """One RLJob, as kubectl sees it. Nothing is remembered between calls."""

    name: str
    kubectl: Kubectl

    def resource(self) -> dict[str, Any]:
        """The resource with its status; InputError names the jobs that there are."""
        found = self.kubectl.json("get", RESOURCE)["items"]
        known = {item["metadata"]["name"]: item for item in found}
        if self.name not in known:
            there = ", ".join(sorted(known)) or "none at all"
            raise InputError("there is no such RLJob in this namespace", where=self.name, mend=f"there are {there}")
        return dict(known[self.name])

    def pods(self) -> list[dict[str, Any]]:
        """All pods of the job, the newest attempt last."""
        items = self.kubectl.json("get", "pods", "-l", f"{names.LABEL_JOB}={self.name}")["items"]
        return sorted(items, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def inspect(self, *options: str) -> str:
        """What `twinpod inspect` prints where the books are."""
        with self.reading() as pod:
            command = ("python", "-m", "twinpod.cli", "inspect", names.STATE_FOLDER, *options)
            return self.kubectl.text("exec", pod, "-c", names.CONTAINER_MASTER, "--", *command)

    def get_model(self, target: Path) -> None:
        """The exported model into `target`, whole or not at all; InputError before the job has exported one."""
        if target.exists():
            raise InputError("exists already", where=str(target), mend="name a folder that does not exist")
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with self.reading() as pod:
                self._fetch(pod, part)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def logs(self, pod: str, lines: int, *, follow: bool) -> int:
        """Prints the logs of the job's pods, or of those whose names begin with `pod`; the exit code."""
        known = [item["metadata"]["name"] for item in self.pods()]
        if not known:
            raise without_pods(self.resource())
        chosen = [name for name in known if name.startswith(pod)]
        if not chosen:
            raise InputError(f"has no pod {pod!r}", where=self.name, mend=f"there are {', '.join(known)}")
        options = ["--all-containers", "--prefix", f"--tail={lines}"]
        if not follow:
            return max(self.kubectl.follow("logs", name, *options) for name in chosen)
        options += ["--follow", f"--max-log-requests={MOST_STREAMS}"]
        if not pod:  # all of them, those that come later included
            return self.kubectl.follow("logs", "-l", f"{names.LABEL_JOB}={self.name}", *options)
        return self.kubectl.follow_all([("logs", name, *options) for name in chosen])

    @contextlib.contextmanager
    def reading(self) -> Iterator[str]:
        """Name of a pod in which both volumes can be read while the block lasts."""
        pods = [pod for pod in self.pods() if pod["metadata"]["labels"].get(names.LABEL_ROLE) == names.Role.MASTER]
        running = [pod for pod in pods if pod["status"].get("phase") == "Running" and not _leaving(pod)]
        if running:
            yield running[-1]["metadata"]["name"]
            return
        resource = self.resource()
        uid = resource["metadata"]["uid"]
        manifest = reader_pod(_typed(resource), uid, self._place(pods, uid))
        name = reader_name(self.name)
        self.kubectl.text("delete", "pod", name, "--ignore-not-found", "--wait=true")
        self.kubectl.text("create", "-f", "-", given=json.dumps(manifest))
        try:
            wait = ("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={READER_START_S}s")
            self.kubectl.text(*wait, deadline_s=READER_START_S + 10)
            yield name
        finally:
            self.kubectl.text("delete", "pod", name, "--ignore-not-found", "--wait=false")

    def _place(self, masters: list[dict[str, Any]], uid: str) -> ReadingPlace:
        """From the newest master's pod, or from the ConfigMap of a job that is suspended or whose master was ended."""
        if masters:
            return place_of(masters[-1])
        for item in self.kubectl.json("get", "configmaps", "-l", f"{names.LABEL_JOB_UID}={uid}")["items"]:
            if (text := (item["metadata"].get("annotations") or {}).get(names.ANNOTATION_READER)) is not None:
                return from_text(text)
        raise EnvironmentFault(
            "nothing says which image reads its volumes: it has no master pod and no ConfigMap of the operator's",
            where=self.name,
            mend="start the operator (kubectl -n twinpod-system get pods), or mount the claims into a pod of your own",
        )

    def _fetch(self, pod: str, part: Path) -> None:
        """A stream of tar from the pod into the folder `part`."""
        call = self.kubectl.stream("exec", pod, "-c", names.CONTAINER_MASTER, "--", "python", "-c", _SEND, EXPORT)
        with call as sending:
            assert sending.stdout is not None
            assert sending.stderr is not None
            try:
                with tarfile.open(fileobj=sending.stdout, mode="r|") as archive:
                    archive.extractall(part, filter="data")
                failed = ""
            except tarfile.TarError as error:
                failed = str(error)
            said = sending.stderr.read().decode(errors="replace")
        if "FileNotFoundError" in said:
            raise InputError("has exported no model yet: that happens when it ends", where=self.name)
        if failed or sending.returncode or not (part / "config.json").exists():
            raise fault_of(said or failed, f"copying from {pod}")


def without_pods(resource: Mapping[str, Any]) -> InputError:
    """Why a job has no logs to show, and where to look instead. Pure."""
    name = resource["metadata"]["name"]
    known = {one["type"]: one for one in (resource.get("status") or {}).get("conditions") or ()}
    for over in (Condition.FAILED, Condition.SUCCEEDED):
        if known.get(over, {}).get("status") == "True":
            why = ": ".join(part for part in (known[over]["reason"], known[over].get("message")) if part)
            said = f"has no pods any more: it has {over.value.lower()} ({why})"
            return InputError(said, where=name, mend=f"what it did: twinpod inspect rlj/{name}")
    if resource["spec"].get("suspend"):
        again = f'kubectl patch rlj {name} --type=merge -p \'{{"spec":{{"suspend":false}}}}\''
        said = "has no pods: it is suspended"
        return InputError(said, where=name, mend=f"what it did: twinpod inspect rlj/{name}; to go on: {again}")
    ready = known.get(Condition.READY, {})
    why = ": ".join(part for part in (ready.get("reason"), ready.get("message")) if part)
    said = f"has no pods yet{f' ({why})' if why else ''}"
    return InputError(said, where=name, mend=f"see kubectl describe rlj {name}")


def _leaving(pod: dict[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _typed(resource: dict[str, Any]) -> RLJob:
    job = check({key: resource[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    assert isinstance(job, RLJob)
    return job

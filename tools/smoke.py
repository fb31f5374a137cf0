"""`make smoke`: a job and a pool that must prove themselves on Kubernetes, one line a step.

The sample's two iterations are over before a pod of a pool is up. So the job is begun with very many; when a pod of the
pool has generated under the current weights, the job is suspended, is told to do two more, and goes on to its end. That
proves the deployment, the pool, suspension and resumption; what the books say in the end must agree with it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from watch import look, steadily

from twinpod.client.cluster import RESOURCE, ClusterJob
from twinpod.errors import EnvironmentFault
from twinpod.master.inspect import from_json
from twinpod.records.run import RunReport

MANY, MORE = 1_000_000, 2
START_S, POOL_S, STOP_S, END_S = 900.0, 900.0, 180.0, 420.0  # the first two: nodes fetch and unpack images
LOOK_S, READ_S = 2.0, 5.0  # reading the books starts a program in the master's pod: not too often
Manifest = dict[str, Any]


class Job(Protocol):
    """A job as it is seen from outside."""

    def resource(self) -> Manifest:
        """The resource with its status."""

    def pods(self) -> list[Manifest]:
        """Its pods, those of its pools among them."""

    def report(self) -> RunReport:
        """What its books say."""

    def change(self, spec: Manifest) -> None:
        """Merges fields into its spec."""


@dataclass(frozen=True, kw_only=True)
class JobOnCluster:
    """The `Job` of a real cluster."""

    job: ClusterJob

    def resource(self) -> Manifest:
        """See Job."""
        return steadily(self.job.resource)

    def pods(self) -> list[Manifest]:
        """See Job."""
        return steadily(self.job.pods)

    def report(self) -> RunReport:
        """See Job."""
        return from_json(steadily(lambda: self.job.inspect("--json")))

    def change(self, spec: Manifest) -> None:
        """See Job."""
        patch = ("patch", RESOURCE, self.job.name, "--type=merge", "-p", json.dumps({"spec": spec}))
        steadily(lambda: self.job.kubectl.text(*patch))


@dataclass(frozen=True, kw_only=True)
class Smoke:
    """The steps, in order. EnvironmentFault says at which one it ended and how the job stood then."""

    job: Job
    pool: str
    say: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    rest: Callable[[float], None] = time.sleep

    def prove(self) -> RunReport:
        """All steps; what the books say in the end."""
        self._until("the job commits its first iteration", self._begun, START_S, LOOK_S)
        self._until(f"a pod of pool {self.pool} generates under the current weights", self._helped, POOL_S, READ_S)
        before = self.job.report()
        self.job.change({"suspend": True})
        self._until("the job is suspended and its pods are gone", self._stopped, STOP_S, LOOK_S)
        done = self.job.report().iterations_committed
        wanted = done + MORE
        self.job.change({"suspend": False, "iterations": wanted})
        self._until(f"resumed after {done} iterations, it ends after {wanted}", self._ended, END_S, LOOK_S)
        report = self.job.report()
        if wrong := problems(before, report, wanted):
            raise EnvironmentFault("; ".join(wrong), where="smoke: the job's books")
        resumed = sum(one.epoch > before.epoch for one in report.iterations)
        self.say(f"smoke: the books agree: {wanted} iterations, {resumed} of them after it was resumed, none twice")
        return report

    def _begun(self, resource: Manifest) -> str:
        return "yes" if committed(resource) else ""

    def _helped(self, _: Manifest) -> str:
        return helped(self.job.report(), self.pool)

    def _stopped(self, resource: Manifest) -> str:
        return "yes" if stopped(resource, self.job.pods()) else ""

    def _ended(self, resource: Manifest) -> str:
        return "Succeeded" if look(resource)[1] == "Succeeded" else ""

    def _until(self, what: str, done: Callable[[Manifest], str], within_s: float, every_s: float) -> None:
        """Until `done` has words for it. A job that ended before is not waited for."""
        began = self.now()
        while True:
            resource = self.job.resource()
            if words := done(resource):
                self.say(f"smoke: {what}: {words} ({self.now() - began:.0f} s)")
                return
            line, ended = look(resource)
            if ended:
                raise EnvironmentFault(f"the job has ended before that: {line}", where=f"smoke: {what}")
            if self.now() - began > within_s:
                raise EnvironmentFault(f"not after {within_s:.0f} s: {line}", where=f"smoke: {what}")
            self.rest(every_s)


def endless(documents: Sequence[Manifest]) -> list[Manifest]:
    """The manifests with a job that does not end by itself meanwhile. Pure."""
    changed = copy.deepcopy(list(documents))
    for one in changed:
        if one["kind"] == "RLJob":
            one["spec"]["iterations"] = MANY
    return changed


def pool_of(job: Manifest) -> Manifest:
    """A pool for the job, with an engine like the job's own. Pure."""
    name, hybrid = job["metadata"]["name"], job["spec"]["hybrid"]
    spec = {"job": name, "replicas": 1, "sharedMemory": hybrid["sharedMemory"], "inference": hybrid["inference"]}
    return {
        "apiVersion": job["apiVersion"],
        "kind": "RolloutPool",
        "metadata": {"name": f"{name}-helpers"},
        "spec": spec,
    }


def committed(resource: Manifest) -> int:
    """Iterations, as the status tells. Pure."""
    return int((resource.get("status") or {}).get("iteration", 0))


def helped(report: RunReport, pool: str) -> str:
    """What the pool's pods did in the last committed iteration in which they made segments under the weights that were
    current then, those of the iteration before; empty when there is none. Pure.
    """
    current = {one.iteration + 1: one.version for one in report.iterations}
    done = {one.iteration for one in report.iterations}
    rows = [row for row in report.pods_by_iteration if row.iteration in current.keys() & done]
    ours = [row for row in rows if row.pod.startswith(f"{pool}-") and row.version >= current[row.iteration]]
    if not ours:
        return ""
    last = ours[-1].iteration
    made = sum(row.segments for row in ours if row.iteration == last)
    everything = sum(row.segments for row in rows if row.iteration == last)
    return f"{made} of {everything} segments of iteration {last}"


def stopped(resource: Manifest, pods: Sequence[Manifest]) -> bool:
    """Whether a job says that it is suspended, and no pod of it is left that could still do something. Pure."""
    conditions = {one["type"]: one["status"] for one in (resource.get("status") or {}).get("conditions", ())}
    over = all(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods)
    return conditions.get("Suspended") == "True" and over


def problems(before: RunReport, after: RunReport, wanted: int) -> list[str]:
    """What is wrong with the books of a job that was resumed after `before` and told to end with `wanted`. Pure."""
    found = []
    numbers = [one.iteration for one in after.iterations]
    first = after.iterations[: before.iterations_committed]
    if [(one.epoch, one.committed_at) for one in first] != [(one.epoch, one.committed_at) for one in before.iterations]:
        found.append("iterations from before it was suspended were lost")
    if numbers != list(range(1, wanted + 1)):
        found.append(f"its {len(numbers)} iterations are not those from 1 to {wanted}")
    if not any(one.epoch > before.epoch for one in after.iterations):
        found.append("no iteration was committed after it was resumed")
    zero = {
        "prompts were trained twice in a pass": after.trained_twice_in_a_pass,
        "tokens are stored twice": after.duplicate_tokens,
        "chains of segments are broken": after.chains_broken,
    }
    return found + [f"{count} {what}" for what, count in zero.items() if count]

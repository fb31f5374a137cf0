"""`make bench-operator`: how fast and how big the operator is, against a real API server with fake nodes, as a table
and `results/operator.json`.

Theory of operation. Each part has a control plane of its own (etcd, API server, controllers; the scheduler stopped,
see `fake_node`), on which the operator runs as its own account with every child of a job on CPUs, certificates and etcd
users included; jobs with devices have a claim template and a turn in a line besides, which is not measured. The bench
applies jobs of four pods, fifty to a namespace, and sees pods come by a watch of its own.
`--only burst` measures a part again, `--small` all of it at a tenth of the size, which writes nothing;
`operator_profile` tells where the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml
from tests.bench import report
from tests.bench.reach import Reach, reach_of
from tests.bench.report import TOP, Measure, Progress, Say
from tests.cluster import life
from tests.cluster.cluster import Cluster
from tests.cluster.operator_scene import USER, OperatorScene, Replica, scrape

from twinpod.api import names
from twinpod.rpc.ports import free_port

CLUSTER = "bench-operator"
IN_NAMESPACE = 50  # jobs; controllers of Kubernetes compare every pod with every budget of its namespace
PODS = 4  # a job: the master and three hybrid pods
SIZES = (250, 500, 1000)
SINGLES = 100
MANY_JOBS, MANY_POOLS = 4_750, 250  # 5,000 resources; 19,000 + 1,000 pods
POOL_PODS = 4
AT_ONCE = 32  # requests of whoever applies
DEADLINE_S = 1_800.0
QUIET_S = 8.0
STILL_S = 0.7
LOOK_S = 0.5
SECONDS = {"single": 120.0, "burst": 400.0, "many": 900.0}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Stage:
    """A control plane, fake nodes and an operator. Life: `staged`."""

    cluster: Cluster
    scene: OperatorScene
    reach: Reach
    session: aiohttp.ClientSession
    operator: Replica
    port: int  # of the operator's metrics
    seen: dict[str, set[str]] = field(default_factory=dict)  # job or pool → names of its pods
    whole: dict[str, float] = field(default_factory=dict)  # owner → when its last pod was seen
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Notes when every owner's pods were all there."""
        async for kind, pod in self.reach.objects(self.session, "/api/v1/pods"):
            owner = pod["metadata"]["ownerReferences"][0]["name"]
            if kind == "ADDED":
                pods = self.seen.setdefault(owner, set())
                pods.add(pod["metadata"]["name"])
                if len(pods) == PODS:
                    self.whole[owner] = time.monotonic()
                    self.came.set()

    async def apply(self, path: str, manifests: Iterable[dict[str, Any]]) -> None:
        """Creates all, AT_ONCE at a time."""
        waiting = iter(list(manifests))

        async def work() -> None:
            for manifest in waiting:
                home = manifest["metadata"]["namespace"]
                url = f"{self.reach.server}/apis/{names.API_VERSION}/namespaces/{home}/{path}"
                async with self.session.post(url, data=orjson.dumps(manifest), headers=_JSON) as answer:
                    if answer.status >= 400:
                        raise RuntimeError(await answer.text())

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Looks again whenever an owner became whole."""
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            if time.monotonic() > deadline or not self.operator.alive:
                raise RuntimeError(f"{what}: not reached; {self.operator.text[-2000:]}")
            self.came.clear()
            try:
                await asyncio.wait_for(self.came.wait(), 1.0)
            except TimeoutError:
                continue

    async def looked(self, count: int) -> None:
        """Until the operator has looked that often at one resource or another."""
        deadline = time.monotonic() + DEADLINE_S
        while self.operator.alive and time.monotonic() < deadline:
            if _looked_at(self.port) >= count:
                return
            await asyncio.sleep(LOOK_S)
        raise RuntimeError(f"{count} looks: not reached; {self.operator.text[-2000:]}")

    async def quiet(self) -> None:
        """Until the operator's account has written nothing for a while."""
        if not await asyncio.to_thread(self.scene.quiet, QUIET_S, DEADLINE_S):
            raise RuntimeError("the operator goes on writing")

    async def restart(self, **environment: str) -> None:
        """The operator ends, another one leads and has seen the world on return."""
        await asyncio.to_thread(self.operator.stop)
        self.port = free_port()
        given = environment | {"TWINPOD_PORT": str(self.port)}
        self.operator = await asyncio.to_thread(lambda: self.scene.lead(DEADLINE_S, **given))

    def cpu_s(self) -> float:
        """Processor seconds of the operator so far."""
        fields = Path(f"/proc/{self.operator.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory_mib(self) -> float:
        """The most that it ever held resident."""
        text = Path(f"/proc/{self.operator.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else math.nan


_JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    """A fresh control plane; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="twinpod-bench-"))
    await asyncio.to_thread(life.down, CLUSTER)
    cluster = Cluster(await asyncio.to_thread(life.up, CLUSTER, "control-plane-only"))
    scene, nodes = OperatorScene(cluster, folder), None
    try:
        await asyncio.to_thread(cluster.kill, "kube-scheduler")
        await asyncio.to_thread(_open, scene)
        nodes = subprocess.Popen([sys.executable, "-m", "tests.bench.fake_node", str(cluster.kubeconfig)], cwd=TOP)
        port = free_port()
        operator = await asyncio.to_thread(lambda: scene.lead(TWINPOD_PORT=str(port)))
        reach = reach_of(cluster.kubeconfig)
        async with reach.session() as session:
            stage = Stage(cluster=cluster, scene=scene, reach=reach, session=session, operator=operator, port=port)
            watching = asyncio.create_task(stage.watch())
            try:
                yield stage
            finally:
                watching.cancel()
    finally:
        if nodes is not None:
            nodes.terminate()
            nodes.wait(10)
        await asyncio.to_thread(scene.close)
        await asyncio.to_thread(life.down, CLUSTER)
        shutil.rmtree(folder, ignore_errors=True)


def _open(scene: OperatorScene) -> None:
    scene.open()
    homes = [home(number) for number in range(0, MANY_JOBS, IN_NAMESPACE)]
    scene.cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in homes))


def home(number: int) -> str:
    """The namespace of a job and its pool."""
    return f"team-{number // IN_NAMESPACE}"


def job(number: int) -> dict[str, Any]:
    """The smoke sample with three hybrid pods."""
    manifest: dict[str, Any] = yaml.safe_load((TOP / "manifests/samples/smoke.yaml").read_text(encoding="utf-8"))
    manifest["metadata"] = {"name": f"job-{number}", "namespace": home(number)}
    manifest["spec"]["hybrid"]["replicas"] = PODS - 1
    return manifest


def pool(number: int) -> dict[str, Any]:
    """A pool of the job with that number."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "RolloutPool",
        "metadata": {"name": f"pool-{number}", "namespace": home(number)},
        "spec": {"job": f"job-{number}", "replicas": POOL_PODS},
    }


async def single(scale: float, say: Say) -> list[Measure]:
    """One job after the other, the operator idle between them."""
    times: list[float] = []
    count = max(5, round(SINGLES * scale))
    async with staged() as stage:
        for number in range(count):
            name = f"job-{number}"
            began = time.monotonic()
            await stage.apply("rljobs", [job(number)])
            await stage.until(lambda name=name: name in stage.whole, f"pods of {name}")
            times.append(stage.whole[name] - began)
            say(f"job {number + 1} of {count}, {times[-1]:.2f} s", (number + 1) / count)
            await _idle(stage)
    worst = statistics.quantiles(times, n=100)[98]
    note = f"median {statistics.median(times):.2f} s, most {max(times):.2f} s, {len(times)} jobs"
    return [Measure(key="single_apply_to_pods_p99_s", value=worst, unit="s", at_most=1.0, note=note)]


async def _idle(stage: Stage) -> None:
    """Until the operator has looked at nothing for a while."""
    before = -1
    while before != (before := _looked_at(stage.port)):
        await asyncio.sleep(STILL_S)


async def burst(scale: float, say: Say) -> list[Measure]:
    """All jobs at once, three sizes, each on a fresh control plane; on the largest also rest and restart."""
    seconds: dict[int, float] = {}
    extra: list[Measure] = []
    for place, size in enumerate(SIZES):
        count = max(10, round(size * scale))
        async with staged() as stage:
            began, mark, spent = time.monotonic(), stage.cluster.audit_mark(), stage.cpu_s()
            await stage.apply("rljobs", [job(number) for number in range(count)])
            await stage.until(lambda count=count, stage=stage: len(stage.whole) >= count, f"pods of {count} jobs")
            seconds[size] = max(stage.whole.values()) - began
            spent = stage.cpu_s() - spent
            say(f"{count} jobs in {seconds[size]:.1f} s, operator {spent:.1f} s of CPU", (place + 0.5) / len(SIZES))
            if size == SIZES[-1]:
                await stage.quiet()
                extra += _requests(stage, mark, count)
                extra += await _rest_and_restart(stage, count)
    rate = round(SIZES[-1] * scale) / seconds[SIZES[-1]]
    growth = (seconds[SIZES[-1]] / SIZES[-1]) / (seconds[SIZES[0]] / SIZES[0])
    each = ", ".join(f"{size}: {seconds[size]:.1f} s" for size in SIZES)
    return [
        Measure(key="jobs_per_s_1000", value=rate, unit="jobs/s", at_least=15.0, note=each),
        Measure(key="growth_250_to_1000", value=growth, unit="", at_most=1.2, note="seconds per job"),
        *extra,
    ]


def _requests(stage: Stage, mark: int, count: int) -> list[Measure]:
    verbs = Counter(request.verb for request in stage.cluster.audit(mark) if request.user == USER)
    note = ", ".join(f"{verb} {number / count:.2f}" for verb, number in verbs.most_common())
    return [Measure(key="api_requests_per_job", value=verbs.total() / count, unit="requests", note=note)]


async def _rest_and_restart(stage: Stage, count: int) -> list[Measure]:
    """Writes of a minute at rest; then a new process, until it has seen the world and has nothing more to do."""
    mark = stage.cluster.audit_mark()
    await asyncio.sleep(60.0)
    idle = len(stage.scene.writes(mark))
    began, mark = time.monotonic(), stage.cluster.audit_mark()
    await stage.restart()
    await stage.looked(count)
    restart, writes = time.monotonic() - began, len(stage.scene.writes(mark))
    return [
        Measure(key="idle_writes_per_minute", value=idle, unit="writes", at_most=0.0, note=f"{count} jobs"),
        Measure(key="restart_s_1000", value=restart, unit="s", note=f"to the last job looked at; {writes} writes"),
    ]


def _looked_at(port: int) -> int:
    found = re.findall(r"twinpod_operator_reconciles_total\{[^}]*\} (\d+)", scrape(port))
    return sum(map(int, found))


async def many(scale: float, say: Say) -> list[Measure]:
    """5,000 resources with 20,000 pods at rest: processor time of one resync, most memory."""
    jobs, pools, every = max(10, round(MANY_JOBS * scale)), max(2, round(MANY_POOLS * scale)), 120
    async with staged() as stage:
        first = [job(number) for number in range(jobs)]
        second = [pool(number) for number in range(pools)]
        await stage.apply("rljobs", first)
        telling = asyncio.create_task(_tell(stage, jobs + pools, say))
        await stage.apply("rolloutpools", second)
        await stage.until(lambda: len(stage.whole) >= jobs + pools, "all pods")
        telling.cancel()
        say("waiting for rest", 0.7)
        await stage.quiet()
        await stage.restart(TWINPOD_RESYNC_S=f"{every}s")
        await stage.looked(jobs + pools)
        await _idle(stage)
        say("waiting for one resync", 0.8)
        before, spent = _looked_at(stage.port), stage.cpu_s()
        await stage.looked(before + jobs + pools)
        spent = stage.cpu_s() - spent
        looked, memory = _looked_at(stage.port) - before, stage.memory_mib()
    note = f"{jobs} jobs, {pools} pools, {(jobs + pools) * PODS} pods; {looked} looks"
    return [
        Measure(key="resync_cpu_s_5000", value=spent, unit="s", at_most=15.0, note=note),
        Measure(key="memory_mib_5000", value=memory, unit="MiB", at_most=512.0, note="most resident, from its start"),
    ]


async def _tell(stage: Stage, count: int, say: Say) -> None:
    while True:
        say(f"{len(stage.whole)} of {count} have their pods", 0.7 * len(stage.whole) / count)
        await asyncio.sleep(15.0)


PARTS = {"single": single, "burst": burst, "many": many}


def main() -> int:
    """Exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.operator_scale", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts; the file keeps the others")
    parser.add_argument("--small", action="store_true", help="a tenth of everything; nothing is written")
    options = parser.parse_args()
    report.end_in_order()
    chosen = [name for name in PARTS if options.only is None or name in options.only]
    progress = Progress("operator", {name: SECONDS[name] for name in chosen})
    measures: list[Measure] = []
    for name in chosen:
        progress.part(name)
        measures += asyncio.run(PARTS[name](0.1 if options.small else 1.0, progress.say))
    return report.finish("operator", measures, save=not options.small, part=options.only is not None)


if __name__ == "__main__":
    sys.exit(main())

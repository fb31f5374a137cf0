"""A run of local mode with small shell scripts for containers; a program of its own, because it makes namespaces.

    python local_scene.py FOLDER MAIN SIDECAR [MAX_RESTARTS [POOL [MODEL]]]

POOL is the script of the pods of a pool named helpers, which begins with no pod. MODEL is the job's model folder.

Prints what the spectator is told, then `verdict: reason`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from twinpod.api.load import load_as, load_manifest
from twinpod.api.types import FailurePolicy, ModelSpec, RLJob, RolloutPool
from twinpod.local import Launcher
from twinpod.local.folder import RunFolder
from twinpod.local.isolation import isolate
from twinpod.local.manifest import read_pod
from twinpod.local.rendering import Rendered, RenderedPool

SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/reverse-letters.yaml"


POOL = """
{apiVersion: twinpod.dev/v1alpha1, kind: RolloutPool, metadata: {name: helpers}, spec: {job: reverse-letters}}
"""


class Teller:
    def note(self, line: str) -> None:
        print(line, flush=True)

    async def follow(self) -> None:
        await asyncio.Event().wait()


def manifest(main: str, sidecar: str, name: str = "j-master") -> dict[str, Any]:
    mounts = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "run", "mountPath": "/run/twinpod"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "job", "mountPath": "/etc/twinpod/job"},
        {"name": "tls", "mountPath": "/etc/twinpod/tls"},
        {"name": "state", "mountPath": "/var/lib/twinpod/state"},
    ]
    return {
        "metadata": {"name": f"{name}-a0", "namespace": "default"},
        "spec": {
            "restartPolicy": "Never",
            "hostname": name,
            "subdomain": "j",
            "terminationGracePeriodSeconds": 5,
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
                {"name": "run", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "job", "configMap": {"name": "j-job"}},
                {"name": "tls", "secret": {"secretName": "j-tls"}},
                {"name": "state", "persistentVolumeClaim": {"claimName": "j-state"}},
            ],
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "command": ["sh", "-c", sidecar], "volumeMounts": mounts}
            ],
            "containers": [
                {
                    "name": "main",
                    "command": ["sh", "-c", main],
                    "volumeMounts": mounts,
                    "ports": [{"containerPort": 7400}],
                }
            ],
        },
    }


def main(folder: Path, script: str, sidecar: str, restarts: int, pool: str, model: str) -> None:
    def render(_job: RLJob, _uid: str) -> Rendered:
        return Rendered(
            pods=(read_pod(manifest(script, sidecar)),),
            master="j-master",
            configs={"j-job": {"job.json": "{}"}},
            job_secret="j-tls",
            etcd_secret="j-etcd",
            state_claim="j-state",
            snapshots_claim="j-snapshots",
        )

    def render_pool(of: RolloutPool, _job: RLJob, _uid: str) -> RenderedPool:
        pods = tuple(read_pod(manifest(pool, sidecar, f"helpers-rollout-{index}")) for index in range(2))
        return RenderedPool(name=of.metadata.name, replicas=0, pods=pods, configs={})

    job = load_manifest(SAMPLE)
    pools = [load_as(RolloutPool, POOL)] if pool else []
    spec = job.spec.model_copy(update={"failure_policy": FailurePolicy(max_restarts=restarts)})
    if model:
        spec = spec.model_copy(update={"model": ModelSpec(from_=model)})
    run = RunFolder(folder)
    run.lock()
    isolate()
    run.prepare()
    ended = asyncio.run(
        Launcher(job.model_copy(update={"spec": spec}), run, Teller(), render, pools, render_pool).run()
    )
    print(f"{ended.decision.verdict}: {ended.decision.reason}", flush=True)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(Path(given[1]), given[2], given[3], int(given.get(4, "0")), given.get(5, ""), given.get(6, ""))

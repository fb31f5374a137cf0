"""Real pods of a job that begins with what another left, and that somebody suspends and lets go on."""

from __future__ import annotations

import json

import pytest
import yaml
from tests.cluster.fixtures import cluster
from tests.cluster.platform import ROOT
from tests.cluster.platform_scene import START_S, Manifest, PlatformScene, platform, scene

from twinpod.api import names
from twinpod.client.cluster import ClusterJob
from twinpod.client.kubectl import Kubectl
from twinpod.errors import InputError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
__all__ = ["cluster", "platform", "scene"]


def claims(scene: PlatformScene, job: str) -> list[str]:
    """Names of the volume claims that were made for a job."""
    found = scene.cluster.get("pvc", "-l", f"{names.LABEL_JOB}={job}", namespace=scene.home)["items"]
    return sorted(claim["metadata"]["name"] for claim in found if "deletionTimestamp" not in claim["metadata"])


def begins_with(scene: PlatformScene, name: str, claim: str) -> None:
    """Apply the smoke sample, as a long run that starts from the export on a claim."""
    manifest: Manifest = yaml.safe_load((ROOT / "manifests/samples/smoke.yaml").read_text())
    manifest["metadata"] = {"name": name}
    manifest["spec"] |= {"iterations": 100_000, "model": {"fromSnapshot": {"claim": claim, "folder": "export"}}}
    manifest["spec"]["hybrid"]["lifeCycle"] = "Keep"
    scene.cluster.apply(manifest, namespace=scene.home)


def suspend(scene: PlatformScene, name: str, value: bool) -> None:
    """As a person, or a queueing system, would."""
    patch = json.dumps({"spec": {"suspend": value}})
    scene.cluster.kubectl("patch", "rlj", name, "--type=merge", "-p", patch, "-n", scene.home)


def every_pod(scene: PlatformScene, name: str) -> list[Manifest]:
    """Pods of a job, those on their way out included."""
    return list(scene.cluster.get("pods", "-l", f"{names.LABEL_JOB}={name}", namespace=scene.home)["items"])


def test_a_job_begins_with_another_s_export_and_goes_on_after_it_was_suspended(scene: PlatformScene) -> None:
    scene.job("a")
    scene.wait_end("a")
    (snapshots,) = (claim for claim in claims(scene, "a") if claim.startswith("a-snapshots-"))
    left = scene.inspect("a")["versions"][-1]

    begins_with(scene, "b", snapshots)
    scene.wait_iteration("b", 3)
    first = scene.inspect("b")["versions"][0]
    assert (first["iteration"], first["digest"]) == (0, left["digest"]), "the weights are the other's, bit for bit"

    suspend(scene, "b", True)
    scene.wait("b", "its pods are gone", lambda: not every_pod(scene, "b"), START_S)
    scene.wait("b", "it says so", lambda: scene.condition("b", "Suspended")[0] == "True", 60)
    before = scene.inspect("b")  # by a reader pod: nothing of the job runs
    assert before["iterations_committed"] >= 3
    with pytest.raises(InputError, match="has no pods: it is suspended"):
        ClusterJob(name="b", kubectl=Kubectl(namespace=scene.home)).logs("", 10, follow=False)

    suspend(scene, "b", False)
    wanted = before["iterations_committed"] + 3
    scene.wait("b", "it goes on", lambda: scene.iteration("b") >= wanted, START_S)
    report, status = scene.inspect("b"), scene.status("b")
    assert [one["iteration"] for one in report["iterations"]] == list(range(1, report["iterations_committed"] + 1))
    assert report["iterations_committed"] >= wanted
    assert (report["resumes"], report["trained_twice_in_a_pass"], report["chains_broken"]) == (1, 0, 0)
    assert (status["attempt"], status["restarts"]) == (2, 0)
    assert (status["applicationFaults"], status["infrastructureFaults"]) == (0, 0)

    kept = claims(scene, "b")
    assert len(kept) == 2
    scene.delete("b")
    assert scene.stays(lambda: claims(scene, "b") == kept, 5.0), "a trained model outlives its job"

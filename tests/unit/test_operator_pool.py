"""Which pods of a pool come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.api.meta import Metadata
from twinpod.api.names import Reason
from twinpod.api.patch import PodPatch
from twinpod.api.types import RLJob, RolloutPool, RolloutPoolSpec
from twinpod.testing.fake_cluster import PLATFORM
from twinpod_operator.nouns import (
    Action,
    Apply,
    ContainerEnd,
    Create,
    Delete,
    Fault,
    Finding,
    JobLink,
    Key,
    Observed,
    Plan,
    PodView,
)
from twinpod_operator.plan import plan
from twinpod_operator.reading import pod_view

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
NOW = 1_800_000_000.0
JOB = load_manifest(SAMPLE)
LINK = JobLink(name="reverse-letters", uid="job", job=JOB)


def pod(index: int, attempt: int = 0, phase: str = "Running", **more: Any) -> PodView:
    name = names.attempt_name(names.rollout_name("p", index), attempt)
    given = {"created": NOW - 100, "job_uid": "job", "owner_uid": "pool", "ready": phase == "Running"} | more
    return PodView(name=name, uid=name, role="rollout", index=index, attempt=attempt, phase=phase, **given)


def planned(
    replicas: int, *pods: PodView, link: JobLink = LINK, patch: PodPatch | None = None, **seen_too: Any
) -> Plan:
    pool = RolloutPool(
        api_version="twinpod.dev/v1alpha1",
        kind="RolloutPool",
        metadata=Metadata(name="p", namespace=JOB.metadata.namespace),
        spec=RolloutPoolSpec(job="reverse-letters", replicas=replicas, pod_patch=patch),
    )
    key = Key(kind="RolloutPool", namespace="demo", name="p")
    seen = Observed(key=key, uid="pool", generation=1, raw={}, resource=pool, pods=pods, link=link, **seen_too)
    return plan(seen, PLATFORM, NOW)


def actions(replicas: int, *pods: PodView) -> tuple[Action, ...]:
    return planned(replicas, *pods).actions


def moves(replicas: int, *pods: PodView, link: JobLink = LINK) -> tuple[list[str], list[str], str]:
    """Names created, names deleted, reason of Ready."""
    made = planned(replicas, *pods, link=link)
    assert made.status is not None
    (ready,) = [item["reason"] for item in made.status["conditions"] if item["type"] == "Ready"]
    created = [action.manifest["metadata"]["name"] for action in made.actions if isinstance(action, Create)]
    deleted = [action.name for action in made.actions if isinstance(action, Delete) and action.kind == "Pod"]
    return created, deleted, ready


@pytest.mark.parametrize(
    ("replicas", "pods", "created", "deleted"),
    [
        pytest.param(2, (), ["p-rollout-0-a0", "p-rollout-1-a0"], [], id="from nothing"),
        pytest.param(1, (pod(0), pod(1)), [], ["p-rollout-1-a0"], id="the highest index leaves"),
        pytest.param(0, (pod(0), pod(1)), [], ["p-rollout-1-a0", "p-rollout-0-a0"], id="to nothing"),
        pytest.param(2, (pod(0), pod(1, delete_by=NOW + 9)), [], [], id="an index that drains is not taken yet"),
        pytest.param(2, (pod(0), pod(1, delete_by=NOW - 60)), ["p-rollout-1-a1"], [], id="a lost node's pod is"),
        pytest.param(1, (pod(0, phase="Failed", ended_at=NOW - 1),), [], [], id="a crash waits"),
        pytest.param(1, (pod(0, phase="Failed", ended_at=NOW - 6),), ["p-rollout-0-a1"], [], id="then is replaced"),
        pytest.param(1, (pod(0, phase="Failed"), pod(0, 1)), [], ["p-rollout-0-a0"], id="and then removed"),
        pytest.param(1, (pod(0, job_uid="of an older job"),), [], ["p-rollout-0-a0"], id="another job's pod leaves"),
    ],
)
def test_pods_of_a_pool(replicas: int, pods: tuple[PodView, ...], created: list[str], deleted: list[str]) -> None:
    assert moves(replicas, *pods)[:2] == (created, deleted)


def failed(failures: int, **more: Any) -> PodView:
    """The newest pod of index 0, with so many failures before it."""
    why = (Finding(reason="ContainerCrashed", message="container inference: exit 1: no room"),)
    given = {"ended_at": NOW - 500, "created": NOW - 520, "reasons": why} | more
    return pod(0, 7, phase="Failed", failures=failures, **given)


def ended(code: int, container: str) -> ContainerEnd:
    return ContainerEnd(container=container, sidecar=False, code=code, signal=0, reason="Error", message="")


@pytest.mark.parametrize(
    ("newest", "created", "reason"),
    [
        pytest.param(failed(2), ["p-rollout-0-a8"], "ContainerCrashed", id="the third of three restarts"),
        pytest.param(failed(3), [], "RestartBudgetSpent", id="a fourth there is not"),
        pytest.param(failed(9, created=NOW - 5000), ["p-rollout-0-a8"], "ContainerCrashed", id="this one had lasted"),
        pytest.param(failed(3, fault=Fault.QUEUE), ["p-rollout-0-a8"], "ContainerCrashed", id="a queue took it back"),
        pytest.param(failed(0, ends=(ended(2, "inference"),)), [], "InputError", id="its input is wrong"),
        pytest.param(failed(0, ends=(ended(2, "of a patch"),)), ["p-rollout-0-a8"], "ContainerCrashed", id="not ours"),
        pytest.param(failed(3, delete_by=NOW - 60), ["p-rollout-0-a8"], "Scaling", id="somebody deleted it"),
    ],
)
def test_a_pod_that_ends_soon_again_and_again_is_given_up(newest: PodView, created: list[str], reason: str) -> None:
    assert moves(1, newest)[::2] == (created, reason)


def test_without_its_device_class_a_pool_makes_no_pods_and_says_why() -> None:
    made = planned(1, missing_device_class=True)
    assert [action for action in made.actions if isinstance(action, Create)] == []
    assert made.wake_after_s is not None
    assert made.status is not None
    (ready,) = [item for item in made.status["conditions"] if item["type"] == "Ready"]
    assert (ready["reason"], "set sharing: WholeNode" in ready["message"]) == (Reason.DEVICE_CLASS_MISSING, True)


def test_a_patch_is_proved_before_the_first_pod_of_a_pool_is_made() -> None:
    patch = PodPatch.model_validate({"spec": {"nodeSelector": {"disk": "ssd"}}})

    def order(*pods: PodView) -> list[str]:
        return [type(one).__name__ for one in planned(2, *pods, patch=patch).actions if not isinstance(one, Apply)]

    assert order()[:3] == ["Prove", "Create", "Create"]
    assert "Prove" not in order(pod(0))


def test_scaling_away_and_back_begins_anew() -> None:
    assert moves(0, failed(3))[:2] == ([], ["p-rollout-0-a7"])
    assert moves(1)[0] == ["p-rollout-0-a0"]


def test_a_new_pod_knows_how_many_before_it_ended_soon() -> None:
    (created,) = [action for action in actions(1, failed(1)) if isinstance(action, Create)]
    assert created.manifest["metadata"]["annotations"][names.ANNOTATION_FAILURES] == "2"
    metadata = created.manifest["metadata"] | {"uid": "u"}
    assert pod_view(created.manifest | {"metadata": metadata}).failures == 2


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (JobLink(name="reverse-letters"), "JobMissing"),
        (JobLink(name="reverse-letters", uid="job", job=JOB, suspended=True), "JobSuspended"),
        (JobLink(name="reverse-letters", uid="job", job=JOB, finished=True), "JobFinished"),
    ],
)
def test_a_pool_without_a_running_job_is_empty_and_says_why(link: JobLink, reason: str) -> None:
    assert isinstance(JOB, RLJob)
    assert moves(1, pod(0), link=link) == ([], ["p-rollout-0-a0"], reason)

"""What the operator decides, told as courses of events in a cluster that is a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.api.names import Reason
from twinpod.api.types import FailurePolicy, RLJob
from twinpod.api.yaml_text import read_document, write_document
from twinpod.testing.fake_cluster import PLATFORM, FakeCluster
from twinpod_operator.nouns import Finding, Key, Observed, Plan
from twinpod_operator.plan import plan
from twinpod_operator.reconcile import Reconciler, Refusals
from twinpod_operator.settings import DAY_S

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
POLICY = {"maxRestarts": 2, "backoffSeconds": 10, "maxBackoffSeconds": 40, "schedulingDeadlineSeconds": 60}


def job_with(name: str = "x", **spec: Any) -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["metadata"] = {"name": name, "namespace": "demo"}
    document["spec"] |= {"failurePolicy": POLICY} | spec
    return load_manifest(write_document(document))


def started(cluster: FakeCluster, **spec: Any) -> Key:
    key = cluster.submit(job_with(**spec))
    cluster.run(key, 30)
    return key


def condition(cluster: FakeCluster, key: Key, kind: str) -> tuple[str, str, str]:
    (found,) = [item for item in cluster.resources[key].status["conditions"] if item["type"] == kind]
    return found["status"], found["reason"], found["message"]


def test_a_job_gets_its_children_certificates_and_pods_in_the_first_plan() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with())
    kinds = [type(action).__name__ for action in cluster.reconcile(key).actions]
    assert kinds[0] == "SetFinalizers"
    order = [kinds.index(kind) for kind in ("SetFinalizers", "Apply", "IssueCertificates", "Create")]
    assert order == sorted(order)
    assert sorted(cluster.pods) == ["x-hybrid-0-a1", "x-master-a1"]


@pytest.mark.parametrize(("accelerators", "warned"), [(1, True), (0, False)])
def test_float32_on_accelerators_is_accepted_with_a_warning(accelerators: int, warned: bool) -> None:
    cluster = FakeCluster()
    hybrid = {"sharedMemory": "256Mi", "lifeCycle": "Restart", "accelerators": accelerators}
    key = started(cluster, hybrid=hybrid)
    status, reason, message = condition(cluster, key, "Accepted")
    assert (status, reason) == ("True", "Valid")
    assert message.startswith("warning: spec.model.dtype: float32 on accelerators") == warned


def test_at_rest_nothing_is_written() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    writes = cluster.writes
    for _ in range(5):
        plan = cluster.reconcile(key)
        assert plan.actions == ()
        cluster.now += 1
    assert cluster.writes == writes


def test_a_job_succeeds_with_its_master_and_never_comes_back() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.tell(key, iteration=101, version=100)
    cluster.crash("x-master-a1", 0)
    cluster.run(key, 300)
    assert condition(cluster, key, "Succeeded")[0] == "True"
    assert condition(cluster, key, "Ready")[:2] == ("False", "Completed")
    for name in list(cluster.pods):
        cluster.remove(name)
    cluster.resources[key].children.clear()
    cluster.run(key, 100)
    assert cluster.pods == {}
    assert cluster.resources[key].children == {}
    assert cluster.created == ["x-master-a1", "x-hybrid-0-a1"]


Hurt = Callable[[FakeCluster], None]


@pytest.mark.parametrize(
    ("hurt", "reason", "counter"),
    [
        pytest.param(lambda c: c.crash("x-hybrid-0-a1"), "ContainerCrashed", "applicationFaults", id="a crash"),
        pytest.param(
            lambda c: c.crash("x-hybrid-0-a1", 137, reason="OOMKilled"), "OOMKilled", "applicationFaults", id="memory"
        ),
        pytest.param(
            lambda c: c.crash("x-hybrid-0-a1", 1, message="/dev/shm holds 1 MiB, 2 MiB are needed"),
            "SharedMemoryTooSmall",
            "applicationFaults",
            id="shared memory",
        ),
        pytest.param(lambda c: c.evict("x-hybrid-0-a1"), "Evicted", "infrastructureFaults", id="a drain"),
        pytest.param(lambda c: c.remove("x-hybrid-0-a1"), "PodDeleted", "infrastructureFaults", id="deleted by hand"),
        pytest.param(
            lambda c: c.lose_node(c.pods["x-hybrid-0-a1"]["spec"]["nodeName"]),
            "NodeLost",
            "infrastructureFaults",
            id="a lost node",
        ),
    ],
)
def test_a_pod_that_is_lost_takes_the_set_along_and_the_next_set_has_new_names(
    hurt: Hurt, reason: str, counter: str
) -> None:
    cluster = FakeCluster()
    key = started(cluster)
    hurt(cluster)
    cluster.run(key, 150)
    status = cluster.resources[key].status
    assert status[counter] == 1
    assert status["lastFault"].startswith(reason)
    running = [view.name for view in cluster.views(key) if view.ready]
    assert sorted(running) == ["x-hybrid-0-a2", "x-master-a2"]
    assert any(event.reason == "Restarting" and reason in event.message for event in cluster.events)


class Unlabelled:
    """Observer and actor of a cluster where pods lose their labels, each while the one before it is looked for."""

    def __init__(self, cluster: FakeCluster, losing: list[str]) -> None:
        self.cluster, self.losing = cluster, losing
        self.hidden: dict[str, Any] = {}
        self._lose()

    def _lose(self) -> None:
        if self.losing:
            name = self.losing.pop(0)
            self.hidden[name] = self.cluster.pods.pop(name)

    def observe(self, key: Key) -> Observed:
        return self.cluster.observed(key)

    async def find(self, observed: Observed, name: str) -> bool:
        self.cluster.pods[name] = self.hidden.pop(name)
        self._lose()
        return True


async def test_pods_that_lose_their_labels_one_after_the_other_are_all_found_before_anything_is_judged() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    seen: list[Observed] = []

    def judged(observed: Observed, platform: object, now: float) -> Plan:
        seen.append(observed)
        return Plan()

    scene: Any = Unlabelled(cluster, ["x-master-a1", "x-hybrid-0-a1"])
    other: Any = None  # neither API nor world is asked
    await Reconciler(
        api=other, world=other, observer=scene, actor=scene, refusals=Refusals(), plan=judged, platform=PLATFORM,
        resync_s=300.0,
    ).work(key)  # fmt: skip
    assert [sorted(pod.name for pod in one.pods) for one in seen] == [["x-hybrid-0-a1", "x-master-a1"]]


def test_a_crash_that_repeats_uses_the_budget_up_with_growing_pauses() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    born: list[float] = []
    for attempt in (1, 2, 3):
        while f"x-hybrid-0-a{attempt}" not in cluster.pods:
            cluster.run(key, 1, step=1)
        born.append(cluster.now)
        cluster.run(key, 10, step=1)
        cluster.crash(f"x-hybrid-0-a{attempt}")
    cluster.run(key, 300)
    assert condition(cluster, key, "Failed")[:2] == ("True", "ContainerCrashed")
    assert "all 2 restarts are used up" in condition(cluster, key, "Failed")[2]
    assert born[2] - born[1] > 20
    assert len(cluster.created) == 6
    assert not [view for view in cluster.views(key) if not view.ended]


@pytest.mark.parametrize("where", ["x-master-a1", "x-hybrid-0-a1", "a sidecar"])
def test_a_wrong_input_is_not_tried_again_whoever_finds_it(where: str) -> None:
    cluster = FakeCluster()
    key = started(cluster)
    said = "log\ndataset.jsonLines.path: no such file"
    if where == "a sidecar":
        cluster.restart_sidecar("x-hybrid-0-a1", 2, message=said)
    else:
        cluster.crash("x-hybrid-0-a1", 1, message="the others end because of it")
        cluster.crash(where, 2, message=said)
    cluster.run(key, 100)
    assert condition(cluster, key, "Failed")[:2] == ("True", "InputError")
    assert "no such file" in condition(cluster, key, "Failed")[2]
    assert cluster.resources[key].status["attempt"] == 1


def test_restarts_of_a_native_sidecar_count_against_the_budget() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    for _ in range(2):
        cluster.restart_sidecar("x-hybrid-0-a1")
        cluster.run(key, 10)
    assert cluster.resources[key].status["restarts"] == 2
    assert condition(cluster, key, "Failed")[0] == "False"
    cluster.restart_sidecar("x-hybrid-0-a1")
    cluster.run(key, 10)
    assert condition(cluster, key, "Failed")[:2] == ("True", "OOMKilled")


def test_pods_on_a_lost_node_are_replaced_after_their_grace_and_never_forced() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.lose_node("node-0")
    cluster.lose_node("node-1")
    cluster.lost_nodes = {cluster.pods["x-hybrid-0-a1"]["spec"]["nodeName"]}
    cluster.run(key, 50)
    assert "x-hybrid-0-a2" not in cluster.pods
    assert condition(cluster, key, "PodsScheduled")[1] == "PodsTerminating"
    cluster.run(key, 60)
    assert {"x-hybrid-0-a1", "x-hybrid-0-a2"} <= set(cluster.pods)
    assert cluster.resources[key].status["restarts"] == 0


@pytest.mark.parametrize(
    ("waits", "reason"),
    [("ImagePullBackOff", "ImagePullBackOff"), ("CreateContainerConfigError", "CreateContainerConfigError")],
)
def test_what_a_container_waits_for_stands_on_the_job_and_ends_in_failed(waits: str, reason: str) -> None:
    cluster = FakeCluster()
    policy = POLICY | {"maxRestarts": 0, "startDeadlineSeconds": 100}
    key = cluster.submit(job_with(failurePolicy=policy))
    cluster.run(key, 10)
    cluster.wait_with("x-hybrid-0-a1", waits)
    cluster.reconcile(key)
    assert condition(cluster, key, "Ready")[:2] == ("False", reason)
    cluster.run(key, 120)
    assert condition(cluster, key, "Failed")[:2] == ("True", reason)


def test_a_refused_pod_gives_its_reason_at_once_and_is_created_when_it_may_be() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with())
    finding = Finding(reason=Reason.QUOTA_REFUSED, message="exceeded quota: pods, limited: 1")
    cluster.refuse = lambda manifest: finding if "hybrid" in manifest["metadata"]["name"] else None
    cluster.reconcile(key)
    cluster.reconcile(key)
    assert condition(cluster, key, "Ready")[:2] == ("False", "QuotaRefused")
    cluster.refuse = lambda manifest: None
    cluster.run(key, 30)
    assert condition(cluster, key, "WorkersReady")[0] == "True"


DEVICES = {"accelerators": 5, "deviceClass": "fake.twinpod.dev"}


@pytest.mark.parametrize("seed", range(4))
def test_two_jobs_that_each_need_more_than_half_both_finish(seed: int) -> None:
    cluster = FakeCluster(devices=8)
    keys = [cluster.submit(job_with(name, hybrid=DEVICES)) for name in (["a", "b"] if seed % 2 else ["b", "a"])]
    everybody = Key(kind="RLJob", namespace="demo", name="*")
    for _ in range(60):
        cluster.run(everybody, 20 + seed, step=4 + seed)
        for key in keys:
            for view in cluster.views(key):
                if view.role == "master" and view.ready:
                    others = [other for other in cluster.views(key) if other.role == "hybrid"]
                    if all(other.ready for other in others) and not view.deleting:
                        cluster.crash(view.name, 0)
    for key in keys:
        assert condition(cluster, key, "Succeeded")[0] == "True", key
        assert cluster.resources[key].status["restarts"] == 0


def test_a_job_that_cannot_be_placed_gives_everything_back_at_the_deadline() -> None:
    cluster = FakeCluster(devices=2)
    key = cluster.submit(job_with(hybrid=DEVICES))
    cluster.run(key, 50)
    assert condition(cluster, key, "Ready")[1] == "ClaimUnallocated"
    cluster.run(key, 30)
    assert cluster.resources[key].status["schedulingRetries"] == 1
    assert cluster.resources[key].status["restarts"] == 0
    cluster.devices = 8
    cluster.run(key, 100)
    assert condition(cluster, key, "WorkersReady")[0] == "True"


BRIEF = POLICY | {"maxSchedulingRetries": 2, "backoffSeconds": 1, "maxBackoffSeconds": 2}


def test_a_job_that_can_never_be_placed_fails_when_its_retries_are_used_up() -> None:
    cluster = FakeCluster(devices=2)
    key = cluster.submit(job_with(hybrid=DEVICES, failurePolicy=BRIEF))
    cluster.run(key, 400)
    assert condition(cluster, key, "Failed")[:2] == ("True", "ClaimUnallocated")
    assert (
        "all 2 scheduling retries are used up (failurePolicy.maxSchedulingRetries)"
        in condition(cluster, key, "Failed")[2]
    )
    assert cluster.resources[key].status["schedulingRetries"] == 2
    assert all(view.deleting for view in cluster.views(key))


def test_a_job_of_which_no_pod_may_be_made_is_tried_again_and_fails_in_the_end() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(failurePolicy=BRIEF))
    finding = Finding(reason=Reason.QUOTA_REFUSED, message="exceeded quota: pods, limited: 0")
    cluster.refuse = lambda manifest: finding if manifest["kind"] == "Pod" else None
    cluster.run(key, 100)
    assert condition(cluster, key, "Ready")[:2] == ("False", "QuotaRefused")
    assert cluster.resources[key].status["schedulingRetries"] == 1
    cluster.run(key, 200)
    assert condition(cluster, key, "Failed")[:2] == ("True", "QuotaRefused")


@pytest.mark.parametrize("reason", [Reason.STORE_UNREACHABLE, Reason.NAMESPACE_TERMINATING])
def test_a_store_that_is_away_or_a_namespace_that_ends_uses_no_retries_up(reason: Reason) -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(failurePolicy=BRIEF))
    finding = Finding(reason=reason, message="wait")
    cluster.refuse = lambda manifest: finding if manifest["kind"] == "Pod" else None
    cluster.run(key, 500)
    assert condition(cluster, key, "Ready")[:2] == ("False", reason.value)
    assert cluster.resources[key].status["schedulingRetries"] == 0


def test_devices_that_a_driver_does_not_prepare_end_the_attempt_at_the_start_deadline() -> None:
    cluster = FakeCluster()
    policy = POLICY | {"maxRestarts": 0, "startDeadlineSeconds": 100}
    key = cluster.submit(job_with(hybrid=DEVICES, failurePolicy=policy))
    cluster.run(key, 10)
    cluster.wait_with("x-hybrid-0-a1", "ContainerCreating")
    unprepared = Finding(reason=Reason.CLAIM_UNALLOCATED, message="failed to prepare dynamic resources")

    def seen() -> Observed:
        """As the observer adds to a pod what its events alone tell."""
        found = cluster.observed(key)
        pods = (replace(pod, reasons=(unprepared,)) if pod.role == "hybrid" else pod for pod in found.pods)
        return replace(found, pods=tuple(pods))

    verdicts = []
    for _ in range(2):
        status = plan(seen(), PLATFORM, cluster.now).status
        assert status is not None
        verdicts += [(one["status"], one["reason"]) for one in status["conditions"] if one["type"] == "Failed"]
        cluster.run(key, 120)
    assert verdicts == [("False", "Unfinished"), ("True", "ClaimUnallocated")]


def test_the_turn_is_one_jobs_at_a_time() -> None:
    cluster = FakeCluster(devices=10)
    first, second = (cluster.submit(job_with(name, hybrid=DEVICES)) for name in "ab")
    cluster.reconcile(first)
    cluster.settle(1)
    cluster.reconcile(second)
    for key in (second, first):
        cluster.reconcile(key)
    gated = {view.name: view.gated for key in (first, second) for view in cluster.views(key)}
    assert gated == {"a-master-a1": False, "a-hybrid-0-a1": False, "b-master-a1": True, "b-hybrid-0-a1": True}
    cluster.settle(1)
    cluster.reconcile(second)
    assert not any(view.gated for view in cluster.views(second))


QUEUE = {names.QUEUE_LABEL: "team"}


def test_a_queue_admits_preempts_and_admits_again_at_no_cost() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(), QUEUE)
    cluster.run(key, 200)
    assert condition(cluster, key, "QuotaReserved")[:2] == ("False", "Queued")
    assert condition(cluster, key, "Ready")[1] == "Queued"
    for attempt in (1, 2, 3):
        cluster.admit(key)
        cluster.run(key, 20)
        assert condition(cluster, key, "QuotaReserved")[0] == "True"
        assert all(view.ready for view in cluster.views(key) if view.attempt == attempt)
        cluster.preempt(key)
        cluster.run(key, 10)
        cluster.finalize(key)
        cluster.run(key, 10)
    status = cluster.resources[key].status
    assert (status["preemptions"], status["restarts"], status["infrastructureFaults"]) == (3, 0, 0)
    assert condition(cluster, key, "Failed")[0] == "False"


def test_a_queued_job_that_failed_ends_its_group_so_that_its_pods_can_go() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(failurePolicy=POLICY | {"maxRestarts": 0}), QUEUE)
    cluster.run(key, 10)
    cluster.admit(key)
    cluster.run(key, 20)
    cluster.crash("x-hybrid-0-a1")
    cluster.run(key, 20)
    cluster.finalize(key)
    assert all("finalizers" not in raw["metadata"] for raw in cluster.pods.values())


def test_a_suspended_job_has_no_pods_and_goes_on_with_new_ones() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.edit(key, suspend=True)
    cluster.run(key, 30)
    assert cluster.pods == {}
    assert condition(cluster, key, "Suspended")[0] == "True"
    assert condition(cluster, key, "Ready")[1] == "Suspended"
    writes = cluster.writes
    cluster.run(key, 30)
    assert cluster.writes == writes
    cluster.edit(key, suspend=False)
    cluster.run(key, 30)
    assert sorted(cluster.pods) == ["x-hybrid-0-a2", "x-master-a2"]
    status = cluster.resources[key].status
    assert (status["restarts"], status["infrastructureFaults"]) == (0, 0)


def test_the_master_of_a_suspended_job_goes_first_so_that_its_trainers_take_a_last_snapshot() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.edit(key, suspend=True)
    while "x-master-a1" in cluster.pods:
        assert "deletionTimestamp" not in cluster.pods["x-hybrid-0-a1"]["metadata"]
        cluster.run(key, 1, step=1)
    cluster.run(key, 20)
    assert cluster.pods == {}


def test_a_master_that_does_not_go_keeps_the_others_no_longer_than_its_grace() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.edit(key, suspend=True)
    cluster.lose_node(cluster.pods["x-master-a1"]["spec"]["nodeName"])
    cluster.run(key, 120)
    assert all("deletionTimestamp" in raw["metadata"] for raw in cluster.pods.values())


def test_a_suspension_gives_no_restart_of_a_sidecar_back() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    for _ in range(2):
        cluster.restart_sidecar("x-hybrid-0-a1")
    cluster.run(key, 5)
    assert cluster.resources[key].status["restarts"] == 2
    cluster.edit(key, suspend=True)
    cluster.run(key, 90)
    assert not any("follows" in event.message for event in cluster.events), "nothing follows a suspension"
    cluster.edit(key, suspend=False)
    cluster.run(key, 30)
    assert cluster.resources[key].status["restarts"] == 2
    cluster.restart_sidecar("x-hybrid-0-a2")
    cluster.run(key, 5)
    assert condition(cluster, key, "Failed")[0] == "True"


def test_a_job_that_is_born_suspended_starts_with_its_first_attempt() -> None:
    cluster = FakeCluster()
    key = started(cluster, suspend=True)
    assert cluster.created == []
    cluster.edit(key, suspend=False)
    cluster.run(key, 10)
    assert sorted(cluster.pods) == ["x-hybrid-0-a1", "x-master-a1"]


def test_a_child_that_is_edited_or_deleted_is_put_back() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    for kind, name in list(cluster.resources[key].children):
        cluster.edit_child(key, kind, name)
        cluster.reconcile(key)
        assert cluster.resources[key].children[kind, name].digest != "edited"
        if name == names.state_claim_name("x", cluster.resources[key].uid):
            continue  # the books of a job that has run are not made anew
        cluster.remove_child(key, kind, name)
        cluster.reconcile(key)
        assert (kind, name) in cluster.resources[key].children
        assert cluster.reconcile(key).actions == ()


def test_certificates_are_renewed_before_they_end() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    first = cluster.resources[key].children["Secret", names.job_tls_name("x")]
    cluster.run(key, 150)
    assert cluster.resources[key].children["Secret", names.job_tls_name("x")].renew_at > first.renew_at


def test_a_deleted_job_stops_its_pods_sweeps_etcd_and_lets_go() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.delete(key)
    cluster.run(key, 40)
    assert key not in cluster.resources
    assert cluster.pods == {}


def test_with_etcd_down_a_deletion_ends_at_its_deadline() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.etcd_down = True
    cluster.delete(key)
    cluster.run(key, 100)
    assert key in cluster.resources
    cluster.run(key, 40)
    assert key not in cluster.resources
    assert cluster.events[-1].reason == "SweepLater"


def test_a_job_whose_time_to_live_is_over_deletes_itself() -> None:
    cluster = FakeCluster()
    key = started(cluster, ttlSecondsAfterFinished=60)
    cluster.crash("x-master-a1", 0)
    cluster.run(key, 50)
    assert key in cluster.resources
    cluster.run(key, 90)
    assert key not in cluster.resources


def test_a_job_past_its_active_deadline_fails() -> None:
    cluster = FakeCluster()
    key = started(cluster, activeDeadlineSeconds=100)
    cluster.run(key, 120)
    assert condition(cluster, key, "Failed")[:2] == ("True", "ActiveDeadlineExceeded")


def test_a_job_of_another_controller_is_left_alone() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(managedBy="kueue.x-k8s.io/multikueue"))
    assert cluster.reconcile(key).status is None
    assert cluster.writes == 0


def test_an_operator_with_another_template_leaves_running_pods_alone() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    for raw in cluster.pods.values():
        raw["metadata"]["annotations"][names.ANNOTATION_TEMPLATE_HASH] = "of an older operator"
    assert cluster.reconcile(key).actions == ()


def test_progress_is_copied_at_most_every_five_seconds_and_unknown_with_etcd_down() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    cluster.tell(key, iteration=1, version=1)
    cluster.reconcile(key)
    status = cluster.resources[key].status
    assert (status["iteration"], status["weightVersion"], status["phase"]) == (0, 1, "generate")
    assert condition(cluster, key, "Ready")[:2] == ("True", "RollingOut")
    writes = cluster.writes
    for left in (4, 3, 2, 1):
        cluster.now += 1
        cluster.tell(key, iteration=2, version=2, reward=0.75)
        assert cluster.reconcile(key).wake_after_s == left
    assert cluster.writes == writes
    cluster.now += 2
    cluster.reconcile(key)
    assert cluster.resources[key].status["reward"] == "0.7500"
    assert (cluster.reconcile(key).wake_after_s or DAY_S) > 60, "a job that says nothing new is not looked at"
    cluster.etcd_down = True
    cluster.reconcile(key)
    assert cluster.resources[key].status["phase"] == "Unknown"
    assert cluster.resources[key].status["iteration"] == 1
    assert condition(cluster, key, "Degraded")[:2] == ("True", "EtcdUnreachable")
    assert condition(cluster, key, "WeightsSynced")[0] == "Unknown"


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    (before,) = [item for item in cluster.resources[key].status["conditions"] if item["type"] == "WorkersReady"]
    cluster.edit(key, ttl_seconds_after_finished=5000)
    cluster.run(key, 30)
    (after,) = [item for item in cluster.resources[key].status["conditions"] if item["type"] == "WorkersReady"]
    assert after == before | {"observedGeneration": 2}


def test_the_first_restart_waits_as_long_as_the_policy_says() -> None:
    policy = FailurePolicy()
    from twinpod_operator.policies.memory import delay_s

    assert [delay_s(policy, times) for times in (1, 2, 3, 9)] == [10, 20, 40, 300]

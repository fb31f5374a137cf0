"""What the operator makes of children that are refused, cannot be changed, or are gone: volumes and devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import names
from twinpod.api.load import load_manifest
from twinpod.api.names import Reason
from twinpod.api.types import RLJob
from twinpod.api.yaml_text import read_document, write_document
from twinpod.testing.fake_cluster import PLATFORM, FakeCluster
from twinpod_operator.actions import let_through
from twinpod_operator.adoption import absent
from twinpod_operator.kinds import kind_of
from twinpod_operator.kube_errors import error_of
from twinpod_operator.nouns import Action, Apply, Create, Finding, IssueCertificates, Key, Label, Manifest, Prove
from twinpod_operator.ownership import changeable, owned_digest, revision, wanted_digest
from twinpod_operator.plan import plan
from twinpod_operator.policies.children import job_children
from twinpod_operator.policies.volumes import CLAIM, unseen_state

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"
TAKEN = Finding(reason=Reason.NAME_TAKEN, message="is left of another job; waits until it is gone")


def job_with(**spec: Any) -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["metadata"] = {"name": "x", "namespace": "demo"}
    document["spec"] |= {"failurePolicy": {"schedulingDeadlineSeconds": 60}} | spec
    return load_manifest(write_document(document))


def started(cluster: FakeCluster, **spec: Any) -> Key:
    key = cluster.submit(job_with(**spec))
    cluster.run(key, 30)
    return key


def condition(cluster: FakeCluster, key: Key, kind: str) -> tuple[str, str, str]:
    (found,) = [item for item in cluster.resources[key].status["conditions"] if item["type"] == kind]
    return found["status"], found["reason"], found["message"]


def state(cluster: FakeCluster, key: Key) -> str:
    return names.state_claim_name("x", cluster.resources[key].uid)


def keep(cluster: FakeCluster, key: Key, what: str) -> None:
    """Somebody patches storage.whenDeleted."""
    storage = cluster.resources[key].job.spec.storage
    cluster.edit(key, storage=storage.model_copy(update={"when_deleted": what}))


def kinds(actions: tuple[Action, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


# --- nothing is made of what somebody else has -----------------------------------------------------------------------

POD: Manifest = {"kind": "Pod", "metadata": {"name": "x-master-a1"}}
MAP: Manifest = {"kind": "ConfigMap", "metadata": {"name": "x-job"}}
SECRET: Manifest = {"kind": "Secret", "metadata": {"name": "x-tls"}}
PLANNED: tuple[Action, ...] = (
    Apply(manifest=MAP),
    IssueCertificates(manifest=SECRET, uid="", etcd=False, hosts=()),
    Prove(manifest=POD),
    Create(manifest=POD),
    Label(name="x", uid="u", labels=()),
)


@pytest.mark.parametrize(
    ("undone", "left"),
    [
        ((), ["Apply", "IssueCertificates", "Prove", "Create", "Label"]),
        ((("Prove", "Pod", "x-master-a1"),), ["Apply", "IssueCertificates", "Label"]),
        ((("Prove", "Pod", "x-hybrid-0-a1"),), ["Apply", "IssueCertificates", "Prove", "Label"]),
        ((("Apply", "ConfigMap", "x-job"),), ["IssueCertificates", "Label"]),
        ((("Apply", "NetworkPolicy", "x-master"),), ["Apply", "IssueCertificates", "Label"]),
        ((("IssueCertificates", "Secret", "x-tls"),), ["Apply", "Label"]),
        ((("Create", "Pod", "x-hybrid-0-a1"),), ["Apply", "IssueCertificates", "Prove", "Create", "Label"]),
        ((("Create", "Pod", "x-master-a1"),), ["Apply", "IssueCertificates", "Prove", "Label"]),
    ],
)
def test_no_pod_is_made_while_something_that_it_needs_is_refused(undone: Any, left: list[str]) -> None:
    assert kinds(let_through(PLANNED, undone)) == left


@pytest.mark.parametrize("kind", ["ConfigMap", "ServiceAccount", "NetworkPolicy", CLAIM])
def test_a_child_that_is_refused_leaves_the_job_without_pods_and_is_named(kind: str) -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with())
    cluster.refuse = lambda manifest: TAKEN if manifest["kind"] == kind else None
    cluster.run(key, 30)
    assert cluster.created == []
    assert condition(cluster, key, "Ready") == ("False", TAKEN.reason, TAKEN.message)
    cluster.refuse = lambda manifest: None
    cluster.run(key, 30)
    assert condition(cluster, key, "WorkersReady")[0] == "True"


# --- podPatch --------------------------------------------------------------------------------------------------------

PATCH = {"spec": {"nodeSelector": {"disk": "ssd"}}}


@pytest.mark.parametrize(
    ("spec", "proved"),
    [
        ({}, []),
        ({"hybrid": {"replicas": 3, "podPatch": PATCH}}, ["x-hybrid-0-a1"]),
        ({"hybrid": {"podPatch": PATCH}, "master": {"podPatch": PATCH}}, ["x-master-a1", "x-hybrid-0-a1"]),
    ],
)
def test_pods_with_a_patch_are_proved_once_an_attempt_before_any_is_made(spec: Any, proved: list[str]) -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(**spec))
    order = [kind for kind in kinds(cluster.reconcile(key).actions) if kind in ("Prove", "Create")]
    assert order == sorted(order, reverse=True)
    cluster.run(key, 30)
    assert cluster.proved == proved
    cluster.crash("x-hybrid-0-a1")
    cluster.run(key, 120)
    assert cluster.proved == [*proved, *(name.replace("-a1", "-a2") for name in proved)]


def test_a_patch_that_the_api_server_refuses_leaves_the_job_without_pods_and_with_its_words() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(hybrid={"podPatch": PATCH}))
    invalid = Finding(reason=Reason.CHILD_INVALID, message='Pod "x-hybrid-0-a1" is invalid: spec.nodeSelector')
    cluster.refuse = lambda manifest: invalid if manifest["metadata"]["name"].startswith("x-hybrid-0") else None
    cluster.run(key, 30)
    assert cluster.created == []
    assert condition(cluster, key, "Ready") == ("False", invalid.reason, invalid.message)


# --- storage.whenDeleted, whenever it is changed ---------------------------------------------------------------------


def finished(cluster: FakeCluster, key: Key) -> None:
    cluster.crash("x-master-a1", 0)
    cluster.run(key, 60)
    assert condition(cluster, key, "Succeeded")[0] == "True"


@pytest.mark.parametrize(("first", "then", "owners"), [("Delete", "Retain", []), ("Retain", "Delete", ["RLJob"])])
def test_a_finished_job_s_volumes_obey_what_is_asked_for_now(first: str, then: str, owners: list[str]) -> None:
    cluster = FakeCluster()
    key = started(cluster, storage={"whenDeleted": first})
    finished(cluster, key)
    keep(cluster, key, then)
    cluster.refuse = lambda manifest: Finding(reason="AdmissionRefused", message="not now")
    for _ in range(2):
        cluster.reconcile(key)
    assert condition(cluster, key, "Degraded") == ("True", "AdmissionRefused", "not now")
    cluster.refuse = lambda manifest: None
    cluster.reconcile(key)
    assert cluster.owner_of(key, CLAIM, state(cluster, key)) == owners
    assert cluster.reconcile(key).actions == ()
    assert condition(cluster, key, "Degraded")[0] == "False"


@pytest.mark.parametrize(("first", "then", "owners"), [("Delete", "Retain", []), ("Retain", "Delete", ["RLJob"])])
def test_a_job_is_not_let_go_before_its_volumes_have_the_owners_that_are_asked_for(
    first: str, then: str, owners: list[str]
) -> None:
    cluster = FakeCluster()
    key = started(cluster, storage={"whenDeleted": first})
    finished(cluster, key)
    keep(cluster, key, then)
    cluster.delete(key)
    cluster.refuse = lambda manifest: Finding(reason="AdmissionRefused", message="not now")
    cluster.run(key, 60)
    assert cluster.resources[key].finalizers == (names.FINALIZER,)
    assert condition(cluster, key, "Ready")[1] == "Deleting"
    assert "not now" in condition(cluster, key, "Ready")[2]
    cluster.refuse = lambda manifest: None
    cluster.reconcile(key)
    assert cluster.owner_of(key, CLAIM, state(cluster, key)) == owners
    cluster.run(key, 10)
    assert key not in cluster.resources


@pytest.mark.parametrize(("first", "then", "held"), [("Delete", "Retain", True), ("Retain", "Delete", False)])
def test_past_the_deadline_only_a_volume_that_is_to_be_kept_holds_a_deletion_up(
    first: str, then: str, held: bool
) -> None:
    cluster = FakeCluster()
    key = started(cluster, storage={"whenDeleted": first})
    keep(cluster, key, then)
    cluster.delete(key)
    cluster.refuse = lambda manifest: Finding(reason="AdmissionRefused", message="not now")
    cluster.run(key, PLATFORM.deletion_s + 20)
    assert (key in cluster.resources) is held


def test_a_job_that_is_not_valid_any_more_keeps_the_volumes_that_it_says_it_keeps() -> None:
    cluster = FakeCluster()
    key = started(cluster, storage={"whenDeleted": "Delete"})
    keep(cluster, key, "Retain")
    cluster.delete(key)
    observed = replace(cluster.observed(key), resource=None, problems=("a newer rule",))
    applied = [one.manifest for one in plan(observed, PLATFORM, cluster.now).actions if isinstance(one, Apply)]
    assert [one["kind"] for one in applied] == [CLAIM] * 2
    assert not any("ownerReferences" in one["metadata"] for one in applied)


# --- a claim's spec is left alone ------------------------------------------------------------------------------------


def claims(job: RLJob, **platform: Any) -> list[Manifest]:
    return [one for one in job_children(job, replace(PLATFORM, **platform), "uid-1") if one["kind"] == CLAIM]


def test_the_digests_of_a_claim_are_over_its_labels_and_owner_alone() -> None:
    (wanted, _), (moved, _) = claims(job_with()), claims(job_with(), storage_class="fast")
    (owned, _) = claims(job_with(storage={"whenDeleted": "Delete"}))
    assert wanted["spec"] != moved["spec"]
    assert (revision(wanted), wanted_digest(wanted)) == (revision(moved), wanted_digest(moved))
    assert revision(wanted) != revision(owned)
    assert wanted_digest(wanted) != wanted_digest(owned)
    assert "spec" not in changeable(wanted)
    assert wanted_digest(changeable(wanted)) == wanted_digest(wanted)
    theirs = {"uid": "u", "kind": "Backup", "name": "b", "apiVersion": "v1"}
    metadata = {**owned["metadata"], "labels": {**owned["metadata"]["labels"], "team": "a"}}
    metadata["ownerReferences"] = [theirs, *metadata["ownerReferences"]]
    assert owned_digest({**owned, "metadata": metadata}) == wanted_digest(owned), "what others add is theirs"


def grow(cluster: FakeCluster, key: Key) -> None:
    cluster.resize(key, state(cluster, key), "9Gi")


def edit_label(cluster: FakeCluster, key: Key) -> None:
    cluster.edit_child(key, CLAIM, state(cluster, key))


@pytest.mark.parametrize(
    "change", [grow, edit_label, lambda cluster, key: (grow(cluster, key), edit_label(cluster, key))]
)
def test_a_claim_that_was_enlarged_stays_so_and_nothing_is_refused(
    change: Callable[[FakeCluster, Key], Any],
) -> None:
    cluster = FakeCluster()
    key = started(cluster)
    before = cluster.resources[key].manifests[CLAIM, state(cluster, key)]["spec"]["resources"]
    change(cluster, key)
    keep(cluster, key, "Delete")
    cluster.run(key, 30)
    assert cluster.resources[key].refusals == ()
    assert condition(cluster, key, "Degraded")[0] == "False"
    after = cluster.resources[key].manifests[CLAIM, state(cluster, key)]["spec"]["resources"]
    assert after == ({"requests": {"storage": "9Gi"}} if change is not edit_label else before)
    assert cluster.owner_of(key, CLAIM, state(cluster, key)) == ["RLJob"]


def test_another_storage_class_of_the_operator_changes_no_claim_that_is_there() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    made = plan(cluster.observed(key), replace(PLATFORM, storage_class="fast"), cluster.now)
    assert [one for one in made.actions if isinstance(one, Apply)] == []


# --- devices ---------------------------------------------------------------------------------------------------------

DEVICES = {"accelerators": 2, "deviceClass": "fake.twinpod.dev"}


def test_devices_that_are_changed_while_suspended_are_those_that_the_next_pods_have() -> None:
    cluster = FakeCluster()
    key = started(cluster, hybrid=DEVICES)
    cluster.edit(key, suspend=True)
    cluster.run(key, 30)
    hybrid = cluster.resources[key].job.spec.hybrid
    cluster.edit(key, suspend=False, hybrid=hybrid.model_copy(update={"accelerators": 4}))
    cluster.run(key, 60)
    (template,) = [
        one for (kind, _), one in cluster.resources[key].manifests.items() if kind == "ResourceClaimTemplate"
    ]
    assert template["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] == 4
    (claim,) = cluster.pods["x-hybrid-0-a2"]["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]


def test_without_the_device_class_no_template_is_made_and_one_that_is_there_stays() -> None:
    cluster = FakeCluster()
    key = cluster.submit(job_with(hybrid=DEVICES))
    missing = replace(cluster.observed(key), missing_device_class=True)
    made = [one.manifest["kind"] for one in plan(missing, PLATFORM, cluster.now).actions if isinstance(one, Apply)]
    assert "ResourceClaimTemplate" not in made
    assert "ConfigMap" in made
    cluster.run(key, 30)
    missing = replace(cluster.observed(key), missing_device_class=True)
    assert plan(missing, PLATFORM, cluster.now).actions == ()


def test_a_device_class_that_never_comes_fails_the_job_when_its_scheduling_retries_are_used_up() -> None:
    cluster = FakeCluster()
    policy = {"maxSchedulingRetries": 2, "schedulingDeadlineSeconds": 60}
    key = cluster.submit(job_with(hybrid=DEVICES, failurePolicy=policy))
    status: dict[str, Any] = {}
    waited = 0.0
    while waited < 300 and not status.get("completionTime"):
        lacking = replace(cluster.observed(key), missing_device_class=True, status=status)
        made = plan(lacking, PLATFORM, cluster.now + waited)
        assert not [one for one in made.actions if isinstance(one, Create)]
        status = made.status or status
        waited += max(1.0, made.wake_after_s or 0.0)
    failed = next(one for one in status["conditions"] if one["type"] == "Failed")
    assert (failed["reason"], status["schedulingRetries"]) == (Reason.DEVICE_CLASS_MISSING, 2)
    assert "all 2 scheduling retries are used up" in failed["message"]
    assert 180 <= waited <= 240


@pytest.mark.parametrize(
    ("kind", "said", "reason", "parts"),
    [
        (
            "ResourceClaimTemplate",
            "the server could not find the requested resource",
            Reason.API_MISSING,
            ("resource.k8s.io/v1 ResourceClaimTemplate", "1.34", "sharing: WholeNode"),
        ),
        (
            "PodDisruptionBudget",
            "the server could not find the requested resource",
            Reason.API_MISSING,
            ("policy/v1 PodDisruptionBudget",),
        ),
        ("ConfigMap", 'namespaces "demo" not found', Reason.NAMESPACE_TERMINATING, ('namespaces "demo" not found',)),
    ],
)
def test_an_api_that_is_not_served_is_named(kind: str, said: str, reason: Reason, parts: tuple[str, ...]) -> None:
    manifest = {"apiVersion": kind_of(kind).api_version, "kind": kind, "metadata": {"name": "x"}}
    found = absent(manifest, error_of(404, {"message": said, "reason": "NotFound"}, "patch of x"))
    assert found.reason == reason
    for part in parts:
        assert part in found.message


# --- the books are gone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suspended", [False, True])
def test_a_job_that_has_run_gets_no_empty_state_claim_in_place_of_one_that_is_gone(suspended: bool) -> None:
    cluster = FakeCluster()
    key = started(cluster)
    if suspended:
        cluster.edit(key, suspend=True)
        cluster.run(key, 10)
    name, claim = state(cluster, key), cluster.resources[key].children[CLAIM, state(cluster, key)]
    cluster.remove_child(key, CLAIM, name)
    cluster.crash("x-master-a1") if not suspended else None
    cluster.run(key, 90)
    cluster.edit(key, suspend=False)
    cluster.run(key, 900)
    assert (CLAIM, name) not in cluster.resources[key].children
    assert cluster.pods == {}
    assert condition(cluster, key, "Ready")[:2] == ("False", "StateLost")
    assert condition(cluster, key, "Degraded")[:2] == ("True", "StateLost")
    said = condition(cluster, key, "Ready")[2]
    for part in (name, f"{names.LABEL_JOB_UID}={cluster.resources[key].uid}", "model.fromSnapshot"):
        assert part in said
    assert cluster.resources[key].status["schedulingRetries"] == 0, "waiting for a person costs nothing"
    assert cluster.reconcile(key).actions == ()
    cluster.resources[key].children[CLAIM, name] = claim
    cluster.run(key, 30)
    assert condition(cluster, key, "WorkersReady")[0] == "True"


def test_pods_that_run_are_left_alone_while_their_state_claim_is_being_deleted() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    claim = cluster.resources[key].children[CLAIM, state(cluster, key)]
    cluster.resources[key].children[CLAIM, claim.name] = replace(claim, deleting=True)
    cluster.run(key, 30)
    assert sorted(cluster.pods) == ["x-hybrid-0-a1", "x-master-a1"]
    assert condition(cluster, key, "WorkersReady")[0] == "True"
    assert condition(cluster, key, "Degraded")[:2] == ("True", "StateLost")
    assert "is being deleted" in condition(cluster, key, "Degraded")[2]


def test_a_job_that_has_not_run_yet_gets_its_claim_again() -> None:
    cluster = FakeCluster()
    key = started(cluster, suspend=True)
    cluster.remove_child(key, CLAIM, state(cluster, key))
    cluster.reconcile(key)
    assert (CLAIM, state(cluster, key)) in cluster.resources[key].children


def test_a_state_claim_is_looked_for_only_when_a_job_that_has_run_does_not_show_it() -> None:
    cluster = FakeCluster()
    key = started(cluster)
    assert unseen_state(cluster.observed(key)) is None
    cluster.remove_child(key, CLAIM, state(cluster, key))
    sought = unseen_state(cluster.observed(key))
    assert sought is not None
    assert sought["metadata"]["name"] == state(cluster, key)
    assert "spec" not in sought
    assert unseen_state(replace(cluster.observed(key), deleting_since=1.0)) is None
    assert unseen_state(replace(cluster.observed(key), status={})) is None, "it has not run"

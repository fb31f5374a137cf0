"""What the operator may do is what it does: one table, the adapter that obeys it, and the committed manifest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from twinpod.errors import ProtocolError
from twinpod_operator import kinds, permissions
from twinpod_operator.kinds import APPLIED, OURS, USED, check_granted

ROOT = Path(__file__).parents[2]
VERB_OF_METHOD = {
    "get": "get",
    "pages": "list",
    "watch": "watch",
    "create": "create",
    "apply": "patch",
    "merge": "patch",
    "replace": "update",
    "delete": "delete",
}


def test_the_committed_manifest_is_the_one_that_the_table_makes() -> None:
    written = (ROOT / "manifests/operator/rbac.yaml").read_text()
    assert written == permissions.text(), "python -m twinpod_operator.permissions > manifests/operator/rbac.yaml"


def test_every_verb_of_the_adapter_asks_the_table() -> None:
    source = ast.parse((ROOT / "operator/twinpod_operator/kube.py").read_text())
    api = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Api")
    verbs = {
        node.args[0].value
        for node in ast.walk(api)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute | ast.Name)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("_ask", "check_granted")
        and isinstance(node.args[0], ast.Constant)
    }
    assert verbs == set(VERB_OF_METHOD.values())


def test_every_verb_that_is_granted_is_used_somewhere() -> None:
    calls = set()
    for file in (ROOT / "operator/twinpod_operator").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and "api" in ast.dump(node.func.value)
            ):
                calls.add(VERB_OF_METHOD.get(node.func.attr, ""))
    granted = {verb for use in USED for verb in use.verbs}
    assert granted <= calls, "least: nothing is granted that no line of the operator asks for"


@pytest.mark.parametrize("word", ["*", "escalate", "bind", "impersonate", "deletecollection"])
def test_nothing_dangerous_is_granted_to_the_operator(word: str) -> None:
    granted = {verb for use in USED for verb in use.verbs} | {use.kind.plural for use in USED}
    assert word not in granted


def test_leases_are_touched_only_where_the_operator_runs() -> None:
    assert [use.kind.kind for use in USED if use.own_namespace] == ["Lease"]


def test_a_request_that_is_not_granted_is_not_sent() -> None:
    check_granted("create", kinds.POD)
    with pytest.raises(ProtocolError, match="delete of RolloutPool"):
        check_granted("delete", kinds.ROLLOUT_POOL)


def test_every_child_can_be_put_back() -> None:
    for kind in APPLIED:
        for verb in ("get", "create", "patch", "list", "watch"):
            check_granted(verb, kind)
    for kind in OURS:
        check_granted("patch", kind, "status")


@pytest.mark.parametrize("kind", [kinds.CLAIM, kinds.SECRET])
def test_models_and_mounted_secrets_cannot_be_deleted_by_the_operator(kind: kinds.Kind) -> None:
    with pytest.raises(ProtocolError, match="delete of"):
        check_granted("delete", kind)


def test_whoever_may_see_a_pool_sees_its_scale_and_whoever_may_edit_it_scales_it() -> None:
    roles = {one["metadata"]["name"]: one for one in permissions.documents() if one["kind"] == "ClusterRole"}
    for name, verb in (("twinpod-view", "get"), ("twinpod-edit", "patch")):
        (rule,) = roles[name]["rules"]
        assert verb in rule["verbs"]
        assert {"rolloutpools/scale", "sandboxpools/scale"} <= set(rule["resources"])


def test_paths() -> None:
    assert kinds.POD.path("n", "x") == "/api/v1/namespaces/n/pods/x"
    assert kinds.RL_JOB.path() == "/apis/twinpod.dev/v1alpha1/rljobs"
    assert kinds.RL_JOB.path("n", "x", "status") == "/apis/twinpod.dev/v1alpha1/namespaces/n/rljobs/x/status"
    assert kinds.DEVICE_CLASS.path() == "/apis/resource.k8s.io/v1/deviceclasses"

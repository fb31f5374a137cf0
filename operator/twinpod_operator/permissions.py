"""The RBAC manifests, made from the table of verbs that the adapter itself obeys (`kinds.USED`).

    python -m twinpod_operator.permissions > manifests/operator/rbac.yaml

Pure but for its main. A test compares the committed file with what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import yaml

from twinpod.api import names
from twinpod_operator.kinds import OURS, ROLLOUT_POOL, SANDBOX_POOL, USED, Use
from twinpod_operator.nouns import Manifest

ACCOUNT = "twinpod-operator"
NAMESPACE = "twinpod-system"
VIEW, EDIT = ("get", "list", "watch"), ("create", "delete", "deletecollection", "patch", "update")
_HEAD = """\
# Written by `python -m twinpod_operator.permissions` from the operator's own table of verbs (kinds.py); do not edit.
#
# Whoever may create an RLJob may run pods in its namespace, as far as that namespace's Pod Security, quotas and
# policies allow: the role twinpod-edit is as strong as a right to create pods, and is aggregated into admin and edit.
"""
_LABELS = {"app.kubernetes.io/name": names.MANAGED_BY, "app.kubernetes.io/component": "operator"}


def rules(uses: Iterable[Use]) -> list[Manifest]:
    """One rule for each group and set of verbs, in a steady order."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for use in uses:
        resource = "/".join(part for part in (use.kind.plural, use.subresource) if part)
        found.setdefault((use.kind.group, tuple(sorted(use.verbs))), []).append(resource)
    return [
        {"apiGroups": [group], "resources": sorted(resources), "verbs": list(verbs)}
        for (group, verbs), resources in sorted(found.items())
    ]


def documents() -> list[Manifest]:
    """Every object of the file."""
    everywhere = [use for use in USED if not use.own_namespace]
    inside = [use for use in USED if use.own_namespace]
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    plurals = sorted(kind.plural for kind in OURS)
    scales = [f"{kind.plural}/scale" for kind in (ROLLOUT_POOL, SANDBOX_POOL)]
    return [
        _named("v1", "ServiceAccount", ACCOUNT, NAMESPACE),
        {**_rbac("ClusterRole", ACCOUNT), "rules": rules(everywhere)},
        {
            **_rbac("ClusterRoleBinding", ACCOUNT),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT},
            "subjects": [account],
        },
        {**_rbac("Role", ACCOUNT, NAMESPACE), "rules": rules(inside)},
        {
            **_rbac("RoleBinding", ACCOUNT, NAMESPACE),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
            "subjects": [account],
        },
        _aggregated("view", [*plurals, *scales], VIEW, ("view", "edit", "admin")),
        _aggregated("edit", [*plurals, *scales], EDIT, ("edit", "admin")),
    ]


def text() -> str:
    """The file."""
    return _HEAD + yaml.safe_dump_all(documents(), sort_keys=False, default_flow_style=False)


def _aggregated(name: str, resources: list[str], verbs: tuple[str, ...], into: tuple[str, ...]) -> Manifest:
    role = _rbac("ClusterRole", f"{names.MANAGED_BY}-{name}")
    role["metadata"]["labels"] |= {f"rbac.authorization.k8s.io/aggregate-to-{one}": "true" for one in into}
    return {**role, "rules": [{"apiGroups": [names.GROUP], "resources": resources, "verbs": list(verbs)}]}


def _rbac(kind: str, name: str, namespace: str = "") -> Manifest:
    return _named("rbac.authorization.k8s.io/v1", kind, name, namespace)


def _named(version: str, kind: str, name: str, namespace: str = "") -> Manifest:
    metadata: Manifest = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": dict(_LABELS)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


if __name__ == "__main__":
    sys.stdout.write(text())

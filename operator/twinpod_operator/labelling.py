"""The labels that a pod of ours must have, told by what nobody can edit away: its name and its controller. Pure.

Services, policies and budgets find pods by labels, and so do we: an edited label is put back.
"""

from __future__ import annotations

import re

from twinpod.api import names
from twinpod_operator.nouns import Manifest

__all__ = ["controller", "pod_labels", "wrong_labels"]

_POD = re.compile(r"-(master|hybrid|rollout)(?:-(\d+))?-a(\d+)$")


def controller(raw: Manifest) -> tuple[str, str, str]:
    """Kind, name and uid of an object's controller; empty without one."""
    for reference in raw["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["kind"]), str(reference["name"]), str(reference["uid"])
    return "", "", ""


def pod_labels(raw: Manifest) -> dict[str, str]:
    """Empty for a pod that is none of ours."""
    found, (kind, owner, uid) = _POD.search(raw["metadata"]["name"]), controller(raw)
    if found is None or kind not in ("RLJob", "RolloutPool"):
        return {}
    role, index, attempt = found.groups()
    return {
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_COMPONENT: role,
        names.LABEL_ROLE: role,
        names.LABEL_INDEX: index or "0",
        names.LABEL_ATTEMPT: attempt,
        names.LABEL_PUBLISHED: "true",
        **(
            {names.LABEL_JOB: owner, names.LABEL_JOB_UID: uid}
            if kind == "RLJob"
            else {names.LABEL_POOL: owner, names.LABEL_POOL_UID: uid}
        ),
    }


def wrong_labels(raw: Manifest) -> tuple[tuple[str, str], ...]:
    """Labels to put back, with their values."""
    labels = raw["metadata"].get("labels") or {}
    return tuple((name, value) for name, value in pod_labels(raw).items() if labels.get(name) != value)

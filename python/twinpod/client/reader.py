"""A pod that reads the volumes of a job whose master is gone: the master's image and nodes, both claims. Pure."""

from __future__ import annotations

from typing import Any

from twinpod.api import names
from twinpod.api.reading_place import ReadingPlace
from twinpod.api.types import RLJob

LIFE_S = 900  # it ends by itself when whoever made it could not remove it


def reader_name(job: str) -> str:
    """Name of the reader pod of a job; one at a time."""
    return f"{job}-reader"


def reader_pod(job: RLJob, uid: str, place: ReadingPlace, group: int = 1000) -> dict[str, Any]:
    """The pod. `group`: user and group that may read the volumes."""
    storage = job.spec.storage
    state = storage.state.existing_claim or names.state_claim_name(job.metadata.name, uid)
    snapshots = storage.snapshots.existing_claim or names.snapshots_claim_name(job.metadata.name, uid)
    volumes = (("state", state, names.STATE_FOLDER), ("snapshots", snapshots, names.SNAPSHOTS_FOLDER))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": reader_name(job.metadata.name),
            "namespace": job.metadata.namespace,
            "labels": {names.LABEL_NAME: names.MANAGED_BY, names.LABEL_COMPONENT: "reader"},
        },
        "spec": {
            **place.spec,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFE_S,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": group,
                "runAsGroup": group,
                "fsGroup": group,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": names.CONTAINER_MASTER,
                    "image": place.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", f"import time; time.sleep({LIFE_S})"],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "128Mi"},
                        "limits": {"cpu": "1", "memory": "512Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    # The books are opened read-only, but SQLite's WAL wants its index beside them.
                    "volumeMounts": [
                        *({"name": name, "mountPath": path} for name, _, path in volumes),
                        {"name": "tmp", "mountPath": names.TEMPORARY_FOLDER},  # SQLite sorts there
                    ],
                }
            ],
            "volumes": [
                *({"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, claim, _ in volumes),
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }

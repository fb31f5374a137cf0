"""The StorageClass's provisioner: each claim gets a folder of one shared directory, wherever its pods run.

`python -m tests.cluster.storage --name NAME`. Volumes have no node affinity, serve ReadWriteOnce and ReadWriteMany
alike and are open to every user (a hostPath volume is not given to `fsGroup`). With the claim, folder and volume go.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Callable

import httpx
from tests.cluster.api import Api, Object
from tests.cluster.layout import Layout, read_layout
from tests.cluster.services import PROVISIONER, STORAGE_CLASS

CLAIMS, VOLUMES = "/api/v1/persistentvolumeclaims", "/api/v1/persistentvolumes"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
RETRY_S = 1.0


def volume_for(claim: Object, folder: str) -> Object | None:
    """The volume that a claim waits for; None when it waits for none of ours."""
    spec, metadata = claim["spec"], claim["metadata"]
    if spec.get("storageClassName") != STORAGE_CLASS or spec.get("volumeName") or "deletionTimestamp" in metadata:
        return None
    reference = {key: metadata[key] for key in ("namespace", "name", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{metadata['uid']}", "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": STORAGE_CLASS,
            "volumeMode": "Filesystem",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "hostPath": {"path": folder, "type": "Directory"},
        },
    }


def is_over(volume: Object) -> bool:
    """Whether the volume is ours, its claim is gone, and it is to go with it."""
    ours = volume["metadata"].get("annotations", {}).get(PROVISIONED_BY) == PROVISIONER
    wanted = volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
    return bool(ours and wanted and volume.get("status", {}).get("phase") == "Released")


def provide(api: Api, layout: Layout, claim: Object) -> None:
    """Folder first, then the volume that names it."""
    metadata = claim["metadata"]
    folder = layout.volumes / f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}"
    volume = volume_for(claim, str(folder))
    if volume is not None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        api.create(VOLUMES, volume)


def take_back(api: Api, volume: Object) -> None:
    """Folder first, so that a volume that is gone has left nothing."""
    if is_over(volume):
        shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
        api.delete(f"{VOLUMES}/{volume['metadata']['name']}")


def follow(api: Api, path: str, act: Callable[[Object], None]) -> None:
    """Act on each object there is and will be; never returns."""
    while True:
        try:
            for one in api.objects(path):
                act(one)
        except httpx.HTTPError as error:
            print(f"{path}: {error}; trying again", file=sys.stderr, flush=True)
            time.sleep(RETRY_S)


def main() -> None:
    """Never returns."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--name", required=True)
    layout = read_layout(arguments.parse_args().name)
    assert layout is not None
    api = Api(layout, "storage")
    claims = threading.Thread(target=follow, args=(api, CLAIMS, lambda claim: provide(api, layout, claim)))
    claims.start()
    follow(api, VOLUMES, lambda volume: take_back(api, volume))


if __name__ == "__main__":
    main()

"""Certificates of one start: a platform authority for etcd and a job authority for gRPC, made new each time, in a
private folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from twinpod.local.rendering import Rendered
from twinpod.rpc.certificates import issue, make_authority


def write_identities(folder: Path, rendered: Rendered, names: Mapping[str, tuple[str, ...]], etcd_address: str) -> None:
    """Fills `folder` (mode 0700): `etcd-server`, and one folder for each Secret that the manifests name.

    names: every address of the run with its DNS names. Authority keys are never written.
    """
    for old in folder.iterdir():
        shutil.rmtree(old)
    every_name = [name for of_one in names.values() for name in of_one]
    platform, job = make_authority("twinpod local platform"), make_authority("twinpod local job")
    own = [*names[etcd_address], "localhost"]
    issue(platform, own, [etcd_address]).write(folder / "etcd-server")
    issue(platform, ["twinpod-local"]).write(folder / rendered.etcd_secret)
    issue(job, [*every_name, "localhost"], [*names, "127.0.0.1"]).write(folder / rendered.job_secret)

"""Backup of the platform's etcd: a snapshot of one member into a folder, checked, and only the newest ones kept.

    backup.py FOLDER KEEP

Endpoints and certificates come from etcdctl's own variables (ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT,
ETCDCTL_KEY). A snapshot is taken from a single member: with several endpoints the first that answers gives it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def main(folder: Path, keep: int) -> None:
    """Takes one snapshot and deletes all but the newest `keep`."""
    target = folder / f"etcd-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db"
    failures = []
    for endpoint in os.environ["ETCDCTL_ENDPOINTS"].split(","):
        environment = {**os.environ, "ETCDCTL_ENDPOINTS": endpoint}
        done = subprocess.run(
            ["etcdctl", "snapshot", "save", f"{target}.partial"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
        failures.append(f"{endpoint}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no answer'}")
    else:
        raise SystemExit("backup: no member gave a snapshot: " + "; ".join(failures))
    Path(f"{target}.partial").rename(target)
    print(f"{target}: {target.stat().st_size} bytes")
    for old in sorted(folder.glob("etcd-*.db"))[:-keep]:
        old.unlink()
        print(f"{old}: deleted, {keep} newer ones are kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Fixtures of tests that need a cluster: `from tests.cluster.fixtures import cluster` (two nodes) or `control_plane`.

A cluster is started once a session, under the name in TWINPOD_CLUSTER (default `tests`), and stopped at its end unless
it ran before. Tests take a namespace of their own: `with namespace(cluster) as name`.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import pytest
from tests.cluster import life, supervisor
from tests.cluster.cluster import Cluster
from tests.cluster.layout import Mode, read_layout


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes."""
    yield from _running(os.environ.get("TWINPOD_CLUSTER", "tests"), "full")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """No nodes."""
    yield from _running(os.environ.get("TWINPOD_CONTROL_PLANE", "tests-control"), "control-plane-only")


@contextlib.contextmanager
def namespace(cluster: Cluster, *, restricted: bool = False) -> Iterator[str]:
    """A namespace that goes with the block."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"} if restricted else {}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    account = ("serviceaccount", "default", "-n", name)
    cluster.wait(
        f"namespace {name} is furnished", lambda: cluster.kubectl("get", *account, check=False).returncode == 0
    )
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def _running(name: str, mode: Mode) -> Iterator[Cluster]:
    known = read_layout(name)
    ran_before = known is not None and bool(supervisor.running(known))
    layout = life.up(name, mode)
    try:
        yield Cluster(layout)
    finally:
        if not ran_before:
            life.down(name)

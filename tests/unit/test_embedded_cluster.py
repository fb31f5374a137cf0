"""What the cluster on this machine decides before it starts anything: names, ports, space, control groups."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster import life, machine, spaces
from tests.cluster.layout import PORTS, TOP, ClusterFault, Layout, chosen_name, need_ports, taken_ports


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """A cluster that was up once, in a folder with a short path; its ports are free."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TWINPOD_CACHE", folder)
        made = Layout(name="x", root=Path(folder) / "cluster/x", number=39, mode="full")
        free = next(one for one in (replace(made, number=n) for n in range(40)) if not taken_ports(one, PORTS))
        free.write()
        yield free


def test_a_person_names_another_cluster_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINPOD_CLUSTER", raising=False)
    assert chosen_name() == "twinpod"
    monkeypatch.setenv("TWINPOD_CLUSTER", "ci")
    assert chosen_name() == "ci"


@pytest.mark.parametrize("what", ["kubeconfig", "registry"])
def test_a_cluster_that_is_down_has_no_facts_but_a_way_up(layout: Layout, what: str) -> None:
    with pytest.raises(ClusterFault, match="cluster x does not run; start it: TWINPOD_CLUSTER=x make cluster-up"):
        life.fact("x", what)


def test_the_usual_cluster_is_started_by_the_plain_verb(layout: Layout) -> None:
    with pytest.raises(ClusterFault, match=r"cluster twinpod does not run; start it: make cluster-up$"):
        life.fact("twinpod", "kubeconfig")


def test_a_port_that_another_program_has_is_named(layout: Layout) -> None:
    need_ports(layout)
    with socket.socket() as other:
        other.bind(("127.0.0.1", layout.port("registry")))
        other.listen()
        with pytest.raises(ClusterFault, match=f"port {layout.port('registry')} of 127.0.0.1 .registry. belongs to"):
            need_ports(layout)


def test_a_port_that_lies_in_the_clusters_own_network_may_be_taken(layout: Layout) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", layout.port("etcd")))
        other.listen()
        need_ports(layout)
        with pytest.raises(ClusterFault, match="etcd"):
            need_ports(replace(layout, mode="control-plane-only"))


def test_space_that_builds_will_take_is_asked_for_before_they_begin(tmp_path: Path) -> None:
    with pytest.raises(ClusterFault, match="GiB free in"):
        machine.check_space(tmp_path, more_gib=1_000_000)


def test_a_path_that_is_too_long_for_sockets_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINPOD_CACHE", str(tmp_path / ("long" * 20)))
    with pytest.raises(ClusterFault, match="set TWINPOD_CACHE to a shorter path"):
        life.check("x", "full")


def test_a_second_supervisor_touches_nothing_of_the_first(layout: Layout) -> None:
    layout.pids.mkdir()
    (layout.pids / "etcd").write_text("1")
    with open(layout.root / "supervisor.lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "tests.cluster", "supervise", "--name", "x"]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "cluster: cluster x has a supervisor already\n")
    assert (layout.pids / "etcd").read_text() == "1"


@pytest.mark.parametrize(
    ("present", "told"),
    [
        ("cpuset cpu io memory hugetlb pids rdma misc", "+cpu +cpuset +memory +pids +hugetlb"),
        ("cpu memory pids", "+cpu +memory +pids"),
        ("", ""),
    ],
)
def test_a_kubelets_controllers_are_turned_on_as_far_as_they_are_present(present: str, told: str) -> None:
    assert spaces.controllers_on(present) == told


def test_on_cgroup_v2_every_level_passes_the_controllers_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    spaces.make_cgroups(tmp_path, ("twinpod-x", "node-1"))
    spaces.make_cgroups(tmp_path, ("twinpod-x", "node-2"))
    for folder in (tmp_path, tmp_path / "twinpod-x"):
        assert (folder / "cgroup.subtree_control").read_text() == "+cpu +cpuset +memory +pids"
    assert {path.name for path in (tmp_path / "twinpod-x").iterdir() if path.is_dir()} == {"node-1", "node-2"}


def test_on_cgroup_v2_a_group_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    (tmp_path / "cgroup.subtree_control").mkdir()
    with pytest.raises(ClusterFault, match=r'subtree_control refuses "\+cpu"'):
        spaces.make_cgroups(tmp_path, ("twinpod-x", "node-1"))


def test_on_cgroup_v1_the_group_is_made_in_every_hierarchy_and_cpusets_are_filled_in(tmp_path: Path) -> None:
    for name in ("cpuset", "memory", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu,cpuacct").symlink_to("memory")
    group = tmp_path / "cpuset/twinpod-x"
    group.mkdir()
    for folder, cpus in ((tmp_path / "cpuset", "0-1"), (group, "")):
        (folder / "cpuset.cpus").write_text(cpus)
    spaces.make_cgroups(tmp_path, ("twinpod-x", "node-1"))
    assert (group / "cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "memory/twinpod-x/node-1").is_dir()
    assert not (tmp_path / "unified/twinpod-x").exists()

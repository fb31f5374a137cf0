"""The embedded cluster is a real one: names, storage, devices and Pod Security work across its two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import leftovers, life, supervisor
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import cluster, namespace
from tests.cluster.images import image
from tests.cluster.layout import read_layout
from tests.cluster.services import DEVICE_CLASS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
__all__ = ["cluster"]

APPLETS = ("sh", "cat", "echo", "env", "grep", "httpd", "id", "ls", "nslookup", "sleep", "sort", "touch", "wget")


@pytest.fixture(scope="module")
def tools(cluster: Cluster) -> str:
    """An image with a shell, pushed from outside and pulled by nodes under the same name."""
    made = image(
        {"/bin/busybox": Path("/bin/busybox").read_bytes()},
        links={f"/bin/{name}": "busybox" for name in APPLETS},
        command=["/bin/sh"],
    )
    return cluster.push("tests/tools:1", made)


@pytest.fixture
def home(cluster: Cluster) -> Iterator[str]:
    with namespace(cluster) as name:
        yield name


def container(tools: str, script: str, name: str = "main", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": tools, "command": ["sh", "-c", script], **more}


def pod(name: str, node: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": list(containers),
            **spec,
        },
    }


def log(cluster: Cluster, home: str, name: str, container: str = "main") -> str:
    return cluster.kubectl("logs", name, "-c", container, "-n", home).stdout


def wait_for(cluster: Cluster, home: str, name: str, phase: str) -> None:
    def there() -> bool:
        found = cluster.get("pod", name, namespace=home)["status"].get("phase")
        assert found == phase or found not in ("Failed", "Succeeded"), cluster.get("pod", name, namespace=home)[
            "status"
        ]
        return bool(found == phase)

    cluster.wait(f"pod {name} is {phase}", there, timeout_s=120)


def test_both_nodes_are_ready_and_promise_the_memory_once(cluster: Cluster) -> None:
    offered = [
        int(cluster.get("node", name)["status"]["allocatable"]["memory"].removesuffix("Ki")) for name in cluster.nodes
    ]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 10
    assert all(cluster.node_ready(name) for name in cluster.nodes)
    assert sum(offered) < machine


def test_a_service_is_reached_by_its_name_from_the_other_node(cluster: Cluster, tools: str, home: str) -> None:
    first, second = cluster.nodes
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hello"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    script = "echo hello from $HOSTNAME > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    cluster.apply(service, pod("server", first, container(tools, script)), namespace=home)
    wait_for(cluster, home, "server", "Running")
    ask = f"until wget -q -O - http://hello.{home}.svc.cluster.local 2>/dev/null; do sleep 0.2; done"
    cluster.apply(pod("client", second, container(tools, ask)), namespace=home)
    wait_for(cluster, home, "client", "Succeeded")
    assert log(cluster, home, "client") == "hello from server\n"


def test_pods_of_a_headless_service_find_each_other_by_host_name(cluster: Cluster, tools: str, home: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "job"},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"group": "job"}},
    }
    pods = []
    for number, node in enumerate(cluster.nodes):
        other = f"pod-{1 - number}.job.{home}.svc.cluster.local"
        made = pod(
            f"pod-{number}",
            node,
            container(tools, f"until nslookup {other}; do sleep 0.2; done >/dev/null 2>&1; sleep 10"),
            hostname=f"pod-{number}",
            subdomain="job",
        )
        made["metadata"]["labels"]["group"] = "job"
        pods.append(made)
    cluster.apply(service, *pods, namespace=home)
    for made in pods:
        wait_for(cluster, home, made["metadata"]["name"], "Succeeded")


def test_a_native_sidecar_starts_before_the_main_container_and_ends_after_it(
    cluster: Cluster, tools: str, home: str
) -> None:
    sidecar = container(
        tools,
        "touch /shared/up; trap 'exit 0' TERM; while true; do sleep 0.1; done",
        name="side",
        restartPolicy="Always",
        volumeMounts=[{"name": "shared", "mountPath": "/shared"}],
        startupProbe={"exec": {"command": ["ls", "/shared/up"]}, "periodSeconds": 1},
    )
    main = container(tools, "ls /shared; id -u", volumeMounts=[{"name": "shared", "mountPath": "/shared"}])
    memory = {"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    made = pod("pair", cluster.nodes[0], main, initContainers=[sidecar], volumes=[memory], securityContext=user)
    cluster.apply(made, namespace=home)
    wait_for(cluster, home, "pair", "Succeeded")
    assert log(cluster, home, "pair") == "up\n1000\n"


def test_pods_on_two_nodes_share_a_claimed_volume(cluster: Cluster, tools: str, home: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}
    mounts: dict[str, Any] = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    writer = pod("writer", cluster.nodes[0], container(tools, "echo from one > /data/a", **mounts))
    reader = pod(
        "reader", cluster.nodes[1], container(tools, "until grep . /data/a 2>/dev/null; do sleep 0.2; done", **mounts)
    )
    for one in (writer, reader):
        one["spec"] |= {"volumes": [volume], "securityContext": user}
    cluster.apply(claim, writer, reader, namespace=home)
    wait_for(cluster, home, "reader", "Succeeded")
    assert log(cluster, home, "reader") == "from one\n"
    folder = next(cluster.layout.volumes.glob(f"{home}-shared-*"))
    cluster.kubectl("delete", "pod,pvc", "--all", "-n", home)
    cluster.wait("the volume's folder is gone", lambda: not folder.exists())


def device_claim(count: int) -> dict[str, Any]:
    exactly = {"deviceClassName": DEVICE_CLASS, "count": count}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "devices"},
        "spec": {"spec": {"devices": {"requests": [{"name": "all", "exactly": exactly}]}}},
    }


def claiming(name: str, node: str, tools: str, script: str) -> dict[str, Any]:
    shared = {"resources": {"claims": [{"name": "devices"}]}}
    both = [container(tools, script, name=side, **shared) for side in ("main", "second")]
    return pod(name, node, *both, resourceClaims=[{"name": "devices", "resourceClaimTemplateName": "devices"}])


def test_two_containers_of_a_pod_see_the_same_claimed_devices(cluster: Cluster, tools: str, home: str) -> None:
    script = "env | grep TWINPOD_FAKE_DEVICE | sort; cat /dev/twinpod-fake-*"
    cluster.apply(device_claim(2), claiming("pair", cluster.nodes[0], tools, script), namespace=home)
    wait_for(cluster, home, "pair", "Succeeded")
    seen = log(cluster, home, "pair")
    assert len(seen.splitlines()) == 4
    assert seen == log(cluster, home, "pair", "second")


def test_devices_come_back_after_the_driver_was_killed_while_a_pod_was_deleted(
    cluster: Cluster, tools: str, home: str
) -> None:
    node = cluster.nodes[1]
    cluster.apply(device_claim(4), claiming("first", node, tools, "sleep 600"), namespace=home)
    wait_for(cluster, home, "first", "Running")
    cluster.kill_driver(node)
    cluster.kubectl("delete", "pod", "first", "-n", home, "--wait=false")
    cluster.start_driver(node)
    cluster.wait("the pod is gone", lambda: not cluster.get("pods", namespace=home)["items"], timeout_s=120)
    cluster.apply(claiming("next", node, tools, "env | grep -c TWINPOD_FAKE_DEVICE"), namespace=home)
    wait_for(cluster, home, "next", "Succeeded")
    assert log(cluster, home, "next") == "4\n"


def test_a_restricted_namespace_refuses_a_privileged_pod(cluster: Cluster, tools: str) -> None:
    with namespace(cluster, restricted=True) as home:
        made = pod("root", cluster.nodes[0], container(tools, "id", securityContext={"privileged": True}))
        with pytest.raises(Exception, match="violates PodSecurity"):
            cluster.apply(made, namespace=home)


def test_a_silent_node_becomes_unready_while_its_pods_live_and_comes_back(
    cluster: Cluster, tools: str, home: str
) -> None:
    node = cluster.nodes[1]
    cluster.apply(pod("lives", node, container(tools, "sleep 600")), namespace=home)
    wait_for(cluster, home, "lives", "Running")
    cluster.kill_kubelet(node)
    cluster.wait("the node is lost", lambda: not cluster.node_ready(node), timeout_s=90)
    cluster.start_kubelet(node)
    cluster.wait("the node is back", lambda: cluster.node_ready(node), timeout_s=90)
    assert cluster.get("pod", "lives", namespace=home)["status"]["containerStatuses"][0]["restartCount"] == 0


def test_requests_are_counted_by_user_and_verb(cluster: Cluster, home: str) -> None:
    mark = cluster.audit_mark()
    cluster.kubectl("create", "configmap", "one", "-n", home)
    refused = cluster.kubectl("create", "configmap", "Not_a_name", "-n", home, check=False)
    assert refused.returncode != 0
    cluster.wait("both are in the log", lambda: cluster.requests_by("kubernetes-admin", mark)["create"] == 2)
    ours = [request for request in cluster.audit(mark) if request.user == "kubernetes-admin"]
    assert [request.code for request in ours if request.verb == "create"] == [201, 422]


def machine_state(name: str) -> tuple[set[str], list[str]]:
    """Interfaces of the machine, and its mounts that have to do with the cluster."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {line.split()[0] for line in links.splitlines()}, [line for line in mounts if name in line or "cni" in line]


@pytest.mark.slow  # a second cluster beside the first asks for another 25 GiB of disk
def test_a_killed_cluster_starts_again_and_leaves_nothing_when_stopped() -> None:
    name = "tests-again"
    before = machine_state(name)
    layout = life.up(name, "full")
    try:
        os.kill(supervisor.running(layout), signal.SIGKILL)
        again = Cluster(life.up(name, "full"))
        assert all(again.node_ready(node) for node in again.nodes)
    finally:
        life.down(name)
    assert read_layout(name) is not None
    assert (leftovers.processes(layout), leftovers.cgroups(layout)) == (set(), [])
    assert machine_state(name) == before

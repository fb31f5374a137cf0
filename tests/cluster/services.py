"""What a cluster has beside Kubernetes' own parts: registry, names, storage, and the way in from outside."""

from __future__ import annotations

import json
import shutil
import sys

from tests.cluster.api import Object
from tests.cluster.building import program
from tests.cluster.layout import DOMAIN, Layout
from tests.cluster.programs import Program

STORAGE_CLASS, PROVISIONER = "twinpod-shared", "twinpod.dev/shared-folder"
DEVICE_CLASS, DEVICE_DRIVER = "fake.twinpod.dev", "devices.twinpod.test"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
REGISTRY_DATA = "registry"


def write_files(layout: Layout) -> None:
    """Configuration of the registry and of CoreDNS."""
    config = layout.root / "config"
    config.mkdir(parents=True, exist_ok=True)
    for path in (layout.volumes, layout.root / REGISTRY_DATA):
        path.mkdir(parents=True, exist_ok=True)
    registry = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(layout.root / REGISTRY_DATA)}, "delete": {"enabled": True}},
        "http": {"addr": f"{layout.control_address}:{layout.port('registry')}", "secret": layout.name},
    }
    (config / "registry.json").write_text(json.dumps(registry, indent=1))
    # No cache: a name that was asked for before its pod was there must be found as soon as it is.
    (config / "Corefile").write_text(f""".:53 {{
    bind {layout.control_address}
    errors
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {layout.pki / "dns.kubeconfig"}
        ttl 1
    }}
}}
""")


def programs(layout: Layout, control_namespace: str) -> list[Program]:
    """`control_namespace`: a path that opens the control plane's network namespace."""
    config = layout.root / "config"
    ways = [
        f"{layout.port('api')}={layout.control_address}:{layout.port('api')}",
        f"{layout.port('registry')}={layout.control_address}:{layout.port('registry')}",
    ]
    registry = shutil.which("docker-registry") or "/usr/bin/docker-registry"
    python = sys.executable
    return [
        Program(name="forwarder", command=(python, "-m", "tests.cluster.forwarder", control_namespace, *ways)),
        Program(name="registry", command=(registry, "serve", str(config / "registry.json")), space="control"),
        Program(
            name="coredns",
            command=(str(program("coredns")), "-conf", str(config / "Corefile")),
            space="control",
            level=1,
        ),
        Program(name="storage", command=(python, "-m", "tests.cluster.storage", "--name", layout.name), level=1),
    ]


def objects(layout: Layout) -> list[tuple[str, Object]]:
    """What is created once the API server is up, each with its path: storage class, device class, DNS."""
    storage_class = {
        "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }
    device_class = {
        "metadata": {"name": DEVICE_CLASS},
        "spec": {"selectors": [{"cel": {"expression": f'device.driver == "{DEVICE_DRIVER}"'}}]},
    }
    found: list[tuple[str, Object]] = [
        ("/apis/storage.k8s.io/v1/storageclasses", storage_class),
        ("/apis/resource.k8s.io/v1/deviceclasses", device_class),
    ]
    return [*found, *_dns_objects(layout)] if layout.full else found


def _dns_objects(layout: Layout) -> list[tuple[str, Object]]:
    labels = {"k8s-app": "kube-dns", "kubernetes.io/service-name": "kube-dns"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": layout.dns_address, "ports": ports},
    }
    endpoints = {
        "metadata": {"name": "kube-dns", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [layout.control_address], "conditions": {"ready": True}}],
        "ports": ports,
    }
    return [
        ("/api/v1/namespaces/kube-system/services", service),
        ("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", endpoints),
    ]

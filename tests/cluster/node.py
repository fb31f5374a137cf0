"""A node: containerd, kubelet, kube-proxy and the test's device driver, with their files.

Everything of a node lies in its own folder. A node promises half of the machine's memory, less what the rest needs, so
that two nodes do not promise the machine twice; processors are promised twice, since they can be shared in time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from tests.cluster.building import program
from tests.cluster.layout import DOMAIN, ClusterFault, Layout
from tests.cluster.programs import Program, flags

CNI_FOLDER = "/usr/lib/cni"
PAUSE_IMAGE = "twinpod-cluster/pause:1"
LEFT_FOR_MACHINE_MIB = 4096
MOST_PODS = 110


def folder(layout: Layout, node: str) -> Path:
    """All that the node keeps."""
    return layout.root / node


def device_specs(layout: Layout, node: str) -> Path:
    """Where containerd looks for CDI specs."""
    return folder(layout, node) / "cdi"


def kubelet_root(layout: Layout, node: str) -> Path:
    """The kubelet's folder; its plug-in sockets are in it."""
    return folder(layout, node) / "kubelet"


def write_files(layout: Layout) -> None:
    """Configuration of every node."""
    for node in layout.nodes:
        here = folder(layout, node)
        for name in ("cni-config", "cdi", "kubelet/plugins_registry", "kubelet/plugins", "pod-logs", "config"):
            (here / name).mkdir(parents=True, exist_ok=True)
        (here / "config" / "resolv.conf").write_text(f"nameserver {layout.dns_address}\n")
        (here / "config" / "containerd.toml").write_text(_containerd_config(layout, node))
        for name, content in (("kubelet", _kubelet_config(layout, node)), ("kube-proxy", _proxy_config(layout, node))):
            (here / "config" / f"{name}.json").write_text(json.dumps(content, indent=1))
        (here / "cni-config" / "10-pods.conflist").write_text(json.dumps(_cni_config(layout, node), indent=1))
        for name in (layout.registry, "registry.twinpod.local:5000"):
            hosts = here / "certs.d" / name / "hosts.toml"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            inside = f"http://{layout.control_address}:{layout.port('registry')}"
            hosts.write_text(f'server = "{inside}"\n[host."{inside}"]\n  capabilities = ["pull", "resolve"]\n')


def programs(layout: Layout, node: str) -> list[Program]:
    """The node's processes, each named `<program>-<node>`."""
    here = folder(layout, node)
    containerd = str(program("containerd"))
    # The shim is looked for beside, runc by its path.
    search = {"PATH": f"{Path(containerd).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
    kubelet = {
        "config": here / "config" / "kubelet.json",
        "kubeconfig": layout.pki / f"{node}.kubeconfig",
        "hostname-override": node,
        "node-ip": layout.node_address(node),
        "root-dir": kubelet_root(layout, node),
        "cert-dir": here / "kubelet-pki",
    }
    proxy = flags({"config": here / "config" / "kube-proxy.json"})
    devices = (sys.executable, "-m", "tests.cluster.devices", "--name", layout.name, "--node", node)
    return [
        Program(
            name=f"containerd-{node}",
            command=(containerd, "--config", str(here / "config" / "containerd.toml")),
            space=node,
            environment=search,
        ),
        Program(name=f"kubelet-{node}", command=(str(program("kubelet")), *flags(kubelet)), space=node, level=1),
        Program(name=f"kube-proxy-{node}", command=(str(program("kube-proxy")), *proxy), space=node, level=1),
        Program(name=f"devices-{node}", command=devices, level=1),
    ]


def promised_memory_mib(machine_mib: int, nodes: int) -> int:
    """What each node offers to pods. ClusterFault on a machine with too little of it."""
    share = (machine_mib - LEFT_FOR_MACHINE_MIB) // nodes
    if share < 1024:
        raise ClusterFault(
            f"{nodes} nodes need {LEFT_FOR_MACHINE_MIB + 1024 * nodes} MiB of memory, found {machine_mib}"
        )
    return share


def _kubelet_config(layout: Layout, node: str) -> dict[str, object]:
    here = folder(layout, node)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    evict_at = 100
    reserved = machine - promised_memory_mib(machine, len(layout.nodes)) - evict_at
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.node_address(node),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},  # of those with a certificate of the cluster's CA
        "tlsCertFile": str(layout.pki / f"{node}.crt"),
        "tlsPrivateKeyFile": str(layout.pki / f"{node}.key"),
        "clusterDNS": [layout.dns_address],
        "clusterDomain": DOMAIN,
        "resolvConf": str(here / "config" / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"{layout.cgroup}/{node}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # a lower one takes a capability that the machine may lack
        "containerRuntimeEndpoint": f"unix://{here}/containerd.sock",
        "podLogsDir": str(here / "pod-logs"),
        "volumePluginDir": str(here / "volume-plugins"),
        "systemReserved": {"memory": f"{reserved}Mi"},
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": {"memory.available": f"{evict_at}Mi", "nodefs.available": "2Gi", "imagefs.available": "2Gi"},
        "evictionPressureTransitionPeriod": "30s",
        "imageGCHighThresholdPercent": 99,
        "imageGCLowThresholdPercent": 98,
        "maxPods": MOST_PODS,
        "makeIPTablesUtilChains": False,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "nodeLeaseDurationSeconds": 20,
        "nodeStatusUpdateFrequency": "5s",
        "volumeStatsAggPeriod": "5m0s",
    }


def _proxy_config(layout: Layout, node: str) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.pki / "proxy.kubeconfig")},
        "hostnameOverride": node,
        "bindAddress": layout.node_address(node),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": layout.pod_range,
        "oomScoreAdj": 0,
        # Connection tracking's size is the machine's, not the namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _cni_config(layout: Layout, node: str) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(folder(layout, node) / "addresses"),
            "ranges": [[{"subnet": f"{layout.node_pods(node)}.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _containerd_config(layout: Layout, node: str) -> str:
    here, runc = folder(layout, node), shutil.which("runc") or "/usr/sbin/runc"
    images, runtime = "plugins.'io.containerd.cri.v1.images'", "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
root = "{here}/containerd"
state = "{here}/containerd-state"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri",
]
[grpc]
  address = "{here}/containerd.sock"
[plugins.'io.containerd.internal.v1.opt']
  path = "{here}/containerd-opt"
[{images}]
  snapshotter = "overlayfs"
  discard_unpacked_layers = true
[{images}.pinned_images]
  sandbox = "{layout.registry}/{PAUSE_IMAGE}"
[{images}.registry]
  config_path = "{here}/certs.d"
[{runtime}]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  cdi_spec_dirs = ["{device_specs(layout, node)}"]
[{runtime}.cni]
  bin_dirs = ["{CNI_FOLDER}"]
  conf_dir = "{here}/cni-config"
[{runtime}.containerd]
  default_runtime_name = "runc"
[{runtime}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{runtime}.containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  Root = "{here}/runc"
  SystemdCgroup = false
"""

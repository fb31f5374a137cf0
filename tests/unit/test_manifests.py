"""What `kubectl apply -k` installs, without a cluster: every manifest is sound by itself and with the others."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.api import names
from twinpod_operator.certificates import etcd_hosts
from twinpod_operator.settings import from_environment

TOP = Path(__file__).resolve().parents[2] / "manifests"
FOLDERS = ("operator", "etcd", "default", "embedded", "crds")
INSTALLED = sorted(path for folder in FOLDERS for path in (TOP / folder).glob("*.yaml"))
OWN_IMAGES = {f"twinpod/{name}" for name in ("operator", "etcd", "master", "trainer", "inference")}

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def resources(*folders: str) -> list[Manifest]:
    """Everything that the kustomizations of these folders name."""
    return [
        document
        for folder in folders
        for name in documents(TOP / folder / "kustomization.yaml")[0]["resources"]
        if name.endswith(".yaml")
        for document in documents(TOP / folder / name)
    ]


PLATFORM = [*resources("default"), *resources("operator"), *resources("etcd")]


def one(kind: str, name: str) -> Manifest:
    found = [item for item in PLATFORM if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def pod_specs() -> Iterator[tuple[str, Manifest]]:
    for item in PLATFORM:
        spec = item.get("spec", {})
        if item["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if item["kind"] in ("Deployment", "StatefulSet", "CronJob"):
            yield item["metadata"]["name"], spec["template"]["spec"]


PODS = dict(pod_specs())


def variables(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_manifest_parses_and_says_what_it_is(path: Path) -> None:
    for document in documents(path):
        if path.name == "images-of-jobs.yaml":
            continue  # a list of replacements, not a resource
        assert document["apiVersion"]
        assert document["kind"]
        assert path.name == "kustomization.yaml" or document["metadata"]["name"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_names_every_manifest_of_its_folder_and_nothing_that_is_not_there(folder: str) -> None:
    kustomization = documents(TOP / folder / "kustomization.yaml")[0]
    named = set(kustomization["resources"])
    named |= {entry["path"] for key in ("patches", "replacements") for entry in kustomization.get(key, ())}
    assert all((TOP / folder / name).exists() for name in named)
    there = {path.name for path in (TOP / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert there == {name for name in named if name.endswith(".yaml")}


@pytest.mark.parametrize("name", sorted(PODS))
def test_every_pod_of_the_platform_fits_restricted_pod_security(name: str) -> None:
    spec = PODS[name]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (1000, 1000)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    kinds = {key for volume in spec["volumes"] for key in volume if key != "name"}
    assert kinds <= {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected"}
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert container["image"] in OWN_IMAGES, "an image that kustomize can replace by its name"
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claims = [item for item in PLATFORM if item["kind"] == "StatefulSet" and item["metadata"]["name"] == name]
        own = {claim["metadata"]["name"] for item in claims for claim in item["spec"]["volumeClaimTemplates"]}
        assert mounted <= {volume["name"] for volume in spec["volumes"]} | own


def test_the_operators_variables_are_what_it_reads() -> None:
    given = variables(PODS["twinpod-operator"]["containers"][0])
    settings = from_environment({**given, "TWINPOD_NAMESPACE": "twinpod-system"})
    assert settings.platform.master_image == "twinpod/master"
    assert settings.etcd_access, "jobs must not read each other's keys"
    port = PODS["twinpod-operator"]["containers"][0]["ports"][0]["containerPort"]
    assert settings.port == port


def test_the_operators_account_is_the_one_that_its_roles_are_bound_to() -> None:
    account = PODS["twinpod-operator"]["serviceAccountName"]
    assert one("ServiceAccount", account)
    bound = {
        subject["name"]
        for item in PLATFORM
        if item["kind"] in ("ClusterRoleBinding", "RoleBinding")
        for subject in item["subjects"]
    }
    assert bound == {account}


def test_members_of_etcd_are_reached_by_names_that_their_certificate_has() -> None:
    member = PODS["twinpod-etcd"]["containers"][0]
    hosts = etcd_hosts("twinpod-system", ())
    replicas = one("StatefulSet", "twinpod-etcd")["spec"]["replicas"]
    expected = [f"twinpod-etcd-{index}.twinpod-etcd.twinpod-system.svc" for index in range(replicas)]
    assert "*.twinpod-etcd.twinpod-system.svc" in hosts
    assert [entry.partition("=https://")[2] for entry in variables(member)["ETCD_INITIAL_CLUSTER"].split(",")] == [
        f"{host}:{names.ETCD_PEER_PORT}" for host in expected
    ]
    clients = [f"{host}:{names.ETCD_PORT}" for host in expected]
    assert variables(PODS["twinpod-operator"]["containers"][0])["TWINPOD_ETCD"].split(",") == clients
    for name in ("twinpod-etcd-backup", "twinpod-etcd-defragment"):
        endpoints = variables(PODS[name]["containers"][0])["ETCDCTL_ENDPOINTS"]
        assert endpoints.split(",") == [f"https://{client}" for client in clients]
    assert variables(member)["ETCD_PEER_CERT_ALLOWED_CN"] == hosts[0], "a job's certificate must not pass for a member"


def test_etcd_mounts_the_secrets_that_the_operator_makes() -> None:
    secrets = {
        volume["secret"]["secretName"] for spec in PODS.values() for volume in spec["volumes"] if "secret" in volume
    }
    assert secrets == {names.ETCD_SERVER, names.ETCD_CLIENT}
    assert names.ETCD_AUTHORITY not in secrets, "the CA's key stays out of pods"


def test_variables_that_name_others_come_after_them() -> None:
    for spec in PODS.values():
        for container in spec["containers"]:
            seen: set[str] = set()
            for entry in container.get("env", ()):
                assert set(re.findall(r"\$\((\w+)\)", entry.get("value", ""))) <= seen, entry["name"]
                seen.add(entry["name"])


def test_both_overlays_give_jobs_the_same_images() -> None:
    assert (TOP / "default/images-of-jobs.yaml").read_text() == (TOP / "embedded/images-of-jobs.yaml").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine")
@pytest.mark.parametrize(("overlay", "members"), [("default", 3), ("embedded", 1)])
def test_an_overlay_takes_images_by_their_names(tmp_path: Path, overlay: str, members: int) -> None:
    tree = tmp_path / "manifests"
    shutil.copytree(TOP, tree)
    file = tree / overlay / "kustomization.yaml"
    chosen = [{"name": name, "newName": f"registry.example:5000/{name}", "newTag": "t1"} for name in OWN_IMAGES]
    file.write_text(file.read_text() + yaml.safe_dump({"images": chosen}))
    text = subprocess.run(["kubectl", "kustomize", file.parent], check=True, capture_output=True, text=True).stdout
    built = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(text)}
    operator = built["Deployment", "twinpod-operator"]["spec"]["template"]["spec"]["containers"][0]
    assert operator["image"] == "registry.example:5000/twinpod/operator:t1"
    for process in ("master", "trainer", "inference"):
        image = f"registry.example:5000/twinpod/{process}:t1"
        assert variables(operator)[f"TWINPOD_{process.upper()}_IMAGE"] == image
    etcd = built["StatefulSet", "twinpod-etcd"]["spec"]
    container = etcd["template"]["spec"]["containers"][0]
    assert (etcd["replicas"], len(variables(container)["ETCD_INITIAL_CLUSTER"].split(","))) == (members, members)
    assert len(variables(operator)["TWINPOD_ETCD"].split(",")) == members
    for key in ("CustomResourceDefinition", "Namespace", "ClusterRole"):
        assert any(kind == key for kind, _ in built)

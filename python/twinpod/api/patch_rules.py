"""What may not stand in a podPatch, as rules that `kubectl apply` and `twinpod validate` both know."""

from __future__ import annotations

import re
from typing import Any

from twinpod.api import names
from twinpod.api.rules import Rule, has

OWN_KEYS = r"^([^/]+[.])?(twinpod[.]dev|kueue[.]x-k8s[.]io|app[.]kubernetes[.]io)/"
OWN_VOLUMES = r"^(job|tls|etcd-tls|run|shm|state|snapshots|source|pool|kernels|tmp-.*)$"
OWN_VARIABLES = r"^(TWINPOD_.*|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|HOME)$"
OWN_FOLDERS = r"^/*$|^/+(etc/twinpod|run/twinpod|var/lib/twinpod|var/cache/twinpod|dev|proc|sys|tmp)(/.*)?$"
OWN_RESOURCES = ("cpu", "memory", "nvidia.com/gpu")


def patch_rules(owner: str, *containers: str) -> tuple[Rule, ...]:
    """The rules of `owner`.podPatch, whose pod has these containers of ours."""
    spec, metadata = f"{owner}.podPatch.spec", f"{owner}.podPatch.metadata"
    listed = ", ".join(f"'{name}'" for name in containers)
    resources = ", ".join(f"'{name}'" for name in OWN_RESOURCES)
    return (
        *(_keys(metadata, field) for field in ("labels", "annotations")),
        Rule(
            path=spec,
            field="volumes",
            cel=f"!has(self.volumes) || self.volumes.all(v, !v.name.matches('{OWN_VOLUMES}'))",
            holds=lambda self: not any(re.match(OWN_VOLUMES, entry["name"]) for entry in _list(self, "volumes")),
            message="cannot replace a volume of Twinpod; choose another name",
        ),
        Rule(
            path=spec,
            field="containers",
            cel=f"!has(self.containers) || self.containers.all(c, c.name in [{listed}])",
            holds=lambda self: all(entry["name"] in containers for entry in _list(self, "containers")),
            message=f"may only name {', '.join(containers)}: the pod has no other of Twinpod's",
        ),
        Rule(
            path=spec,
            field="containers",
            cel=(
                "!has(self.containers) || self.containers.all(c, !has(c.env)"
                f" || c.env.all(e, !e.name.matches('{OWN_VARIABLES}')))"
            ),
            holds=lambda self: (
                not any(
                    re.match(OWN_VARIABLES, variable["name"])
                    for entry in _list(self, "containers")
                    for variable in entry.get("env", ())
                )
            ),
            message="env cannot set TWINPOD_*, CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES or HOME: Twinpod does",
        ),
        Rule(
            path=spec,
            field="containers",
            cel=(
                "!has(self.containers) || self.containers.all(c, !has(c.volumeMounts)"
                f" || c.volumeMounts.all(m, !m.mountPath.matches('{OWN_FOLDERS}')))"
            ),
            holds=lambda self: (
                not any(
                    re.match(OWN_FOLDERS, mount["mountPath"])
                    for entry in _list(self, "containers")
                    for mount in entry.get("volumeMounts", ())
                )
            ),
            message="volumeMounts cannot be in folders of Twinpod or the system: /etc/twinpod, /dev, /tmp and such",
        ),
        Rule(
            path=spec,
            field="containers",
            cel=(
                "!has(self.containers) || self.containers.all(c, !has(c.resources)"
                f" || ((!has(c.resources.requests) || [{resources}].all(r, !(r in c.resources.requests)))"
                f" && (!has(c.resources.limits) || [{resources}].all(r, !(r in c.resources.limits)))))"
            ),
            holds=lambda self: (
                not any(
                    key in entry.get("resources", {}).get(kind, {})
                    for entry in _list(self, "containers")
                    for kind in ("requests", "limits")
                    for key in OWN_RESOURCES
                )
            ),
            message=f"resources cannot set {', '.join(OWN_RESOURCES)}: they have fields of their own",
        ),
    )


def _keys(path: str, field: str) -> Rule:
    return Rule(
        path=path,
        field=field,
        cel=f"!has(self.{field}) || self.{field}.all(k, !k.matches('{OWN_KEYS}'))",
        holds=lambda self: not any(re.match(OWN_KEYS, key) for key in _map(self, field)),
        message="cannot set keys of twinpod.dev, kueue.x-k8s.io and app.kubernetes.io: the job does",
    )


def _list(node: Any, field: str) -> list[dict[str, Any]]:
    return list(getattr(node, field)) if has(node, field) else []


def _map(node: Any, field: str) -> dict[str, Any]:
    """A free map below a node, whose keys may have dots."""
    return node.plain(field) if has(node, field) else {}


JOB_PATCHES = (
    *patch_rules("spec.hybrid", names.CONTAINER_TRAINER, names.CONTAINER_INFERENCE),
    *patch_rules("spec.master", names.CONTAINER_MASTER),
)
POOL_PATCHES = patch_rules("spec", names.CONTAINER_INFERENCE)

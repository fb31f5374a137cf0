"""The kinds of objects that the operator speaks of to the API server: their paths, and what it may do with each.

`USED` is the one table of verbs: `manifests/operator/rbac.yaml` is generated from it (`permissions.py`), and the
adapter refuses a request that is not in it, so that a verb cannot be used without being granted.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinpod.api import names
from twinpod.errors import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind: `group` is empty for the core API. Every kind here but device classes lives in a namespace."""

    kind: str
    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As manifests write it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Path of a collection (no name), an object, or its subresource; without a namespace, of all of them."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        parts = (base + inside, self.plural, name, subresource)
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What the operator does with a kind. `own_namespace`: only in the namespace where it runs."""

    kind: Kind
    verbs: tuple[str, ...]
    subresource: str = ""
    own_namespace: bool = False


def _ours(kind: str) -> Kind:
    return Kind(kind=kind, group=names.GROUP, version=names.VERSION, plural=kind.lower() + "s")


RL_JOB, ROLLOUT_POOL, SANDBOX_POOL = _ours("RLJob"), _ours("RolloutPool"), _ours("SandboxPool")
POD = Kind(kind="Pod", group="", version="v1", plural="pods")
SERVICE = Kind(kind="Service", group="", version="v1", plural="services")
CONFIG_MAP = Kind(kind="ConfigMap", group="", version="v1", plural="configmaps")
SECRET = Kind(kind="Secret", group="", version="v1", plural="secrets")
SERVICE_ACCOUNT = Kind(kind="ServiceAccount", group="", version="v1", plural="serviceaccounts")
CLAIM = Kind(kind="PersistentVolumeClaim", group="", version="v1", plural="persistentvolumeclaims")
EVENT = Kind(kind="Event", group="", version="v1", plural="events")
NETWORK_POLICY = Kind(kind="NetworkPolicy", group="networking.k8s.io", version="v1", plural="networkpolicies")
BUDGET = Kind(kind="PodDisruptionBudget", group="policy", version="v1", plural="poddisruptionbudgets")
DEVICE_TEMPLATE = Kind(
    kind="ResourceClaimTemplate", group="resource.k8s.io", version="v1", plural="resourceclaimtemplates"
)
DEVICE_CLAIM = Kind(kind="ResourceClaim", group="resource.k8s.io", version="v1", plural="resourceclaims")
DEVICE_CLASS = Kind(kind="DeviceClass", group="resource.k8s.io", version="v1", plural="deviceclasses", namespaced=False)
LEASE = Kind(kind="Lease", group="coordination.k8s.io", version="v1", plural="leases")

OURS = (RL_JOB, ROLLOUT_POOL, SANDBOX_POOL)
APPLIED = (SERVICE, CONFIG_MAP, SECRET, SERVICE_ACCOUNT, CLAIM, NETWORK_POLICY, BUDGET, DEVICE_TEMPLATE)
"""Children that are applied; all of them are watched."""

KEPT = (CLAIM, SECRET)
"""Children that the operator never deletes: models, and what a running pod mounts."""

_ALL = (*OURS, POD, *APPLIED, EVENT, DEVICE_CLAIM, DEVICE_CLASS, LEASE)
KINDS = {kind.kind: kind for kind in _ALL}

USED: tuple[Use, ...] = (
    Use(kind=RL_JOB, verbs=("list", "watch", "patch", "delete")),  # its finalizer; its time to live is over
    *(Use(kind=kind, verbs=("list", "watch")) for kind in OURS if kind != RL_JOB),
    *(Use(kind=kind, verbs=("patch",), subresource="status") for kind in OURS),
    # Owner references with blockOwnerDeletion need it where the admission plug-in asks for it.
    *(Use(kind=kind, verbs=("update",), subresource="finalizers") for kind in OURS),
    # Read one by one: where a name may be somebody else's or a label was taken off, and the keys of authorities.
    *(Use(kind=kind, verbs=("get", "list", "watch", "create", "patch")) for kind in (POD, *APPLIED)),
    *(Use(kind=kind, verbs=("delete",)) for kind in (POD, *APPLIED) if kind not in KEPT),
    Use(kind=DEVICE_CLAIM, verbs=("list", "watch")),
    Use(kind=DEVICE_CLASS, verbs=("list", "watch")),
    Use(kind=EVENT, verbs=("list", "watch", "create")),
    Use(kind=LEASE, verbs=("get", "create", "update"), own_namespace=True),
)
_GRANTED = {(verb, use.kind.kind, use.subresource) for use in USED for verb in use.verbs}


def kind_of(manifest_kind: str) -> Kind:
    """The entry of a kind; ProtocolError for one that the operator does not speak of."""
    if manifest_kind not in KINDS:
        raise ProtocolError(f"{manifest_kind} is no kind that the operator handles", where="kinds.KINDS")
    return KINDS[manifest_kind]


def check_granted(verb: str, kind: Kind, subresource: str = "") -> None:
    """ProtocolError for a request that `USED` does not grant."""
    if (verb, kind.kind, subresource) not in _GRANTED:
        raise ProtocolError(f"{verb} of {kind.kind} {subresource} is not in the table of verbs", where="kinds.USED")

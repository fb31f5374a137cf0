"""Making and renewing certificates: of the platform's etcd, and of each job.

    Secret twinpod-etcd-ca       (operator's namespace) CA with key; made once by the leader, never replaced by it
    Secret twinpod-etcd-server   (operator's namespace) certificate of the members, for their names
    Secret twinpod-etcd-client   (operator's namespace) certificate of etcd's user root
    Secret JOB-ca                CA of the job's processes with its key; mounted by nobody
    Secret JOB-tls               certificate of the job's processes, and that CA's certificate
    Secret JOB-etcd              client certificate of the job's etcd user, and etcd's CA's certificate

Leaves are renewed at half of their life (`names.ANNOTATION_RENEW_AT`), so that the kubelet has the other half to bring
the files to the pods. Processes read them without a restart. CAs live for ten years.
"""

from __future__ import annotations

import base64
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from twinpod.api import names
from twinpod.errors import EnvironmentFault
from twinpod.rpc.certificates import Authority, Pem, issue, make_authority
from twinpod_operator.kinds import SECRET
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import AlreadyExists, ApiConflict, NotFound, Refused
from twinpod_operator.nouns import Finding, IssueCertificates, Manifest
from twinpod_operator.ownership import data_digest

DAY_S = 86_400.0
RENEW_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSecret:
    """A leaf of the platform: its Secret and what is written into it."""

    name: str
    hosts: tuple[str, ...]  # first the common name


def secret(manifest: Manifest, data: dict[str, bytes], renew_at: float | None = None) -> Manifest:
    """The whole Secret from its metadata and files; annotated with a digest, and with the time of its renewal. Pure."""
    encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
    metadata = dict(manifest["metadata"])
    notes = {**metadata.get("annotations", {}), names.ANNOTATION_REVISION: data_digest(encoded)}
    if renew_at is not None:
        notes[names.ANNOTATION_RENEW_AT] = str(int(renew_at))
    metadata["annotations"] = notes
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}


def due(found: Manifest, now: float) -> bool:
    """Whether a leaf's Secret is to be made again: its time has come, or somebody changed its content. Pure."""
    notes, data = found["metadata"].get("annotations") or {}, found.get("data") or {}
    renew_at = notes.get(names.ANNOTATION_RENEW_AT, "")
    changed = notes.get(names.ANNOTATION_REVISION) != data_digest(data)
    return changed or not renew_at.isdecimal() or now >= int(renew_at)


def etcd_hosts(namespace: str, endpoints: Sequence[str]) -> tuple[str, ...]:
    """The names and addresses by which members of etcd are reached, also from each other and within themselves."""
    service = f"twinpod-etcd.{namespace}"
    names_of_service = [f"{head}{service}{tail}" for head in ("", "*.") for tail in (".svc", ".svc.cluster.local")]
    given = [endpoint.rpartition(":")[0] for endpoint in endpoints]
    return tuple(dict.fromkeys([f"{service}.svc", *names_of_service, *given, "localhost", "127.0.0.1"]))


class Issuer:
    """Life: of a leader. Holds the platform's CA after `platform()`."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        endpoints: Sequence[str],
        duration_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._namespace, self._endpoints = api, namespace, tuple(endpoints)
        self._duration_s, self._clock = duration_s, clock
        self._authority: Authority | None = None

    async def platform(self) -> float:
        """Makes what is missing in the operator's namespace and renews what is due; returns when to look again."""
        self._authority = await self._etcd_authority()
        for wanted in (
            PlatformSecret(name=names.ETCD_SERVER, hosts=etcd_hosts(self._namespace, self._endpoints)),
            PlatformSecret(name=names.ETCD_CLIENT, hosts=("root",)),
        ):
            await self._platform_leaf(wanted)
        return self._duration_s * RENEW_SHARE / 4

    def own(self) -> Pem:
        """A client certificate of etcd's root for the operator itself; `platform()` must have been called."""
        assert self._authority is not None, "platform() first"
        return issue(self._authority, ["root"], valid_days=self._duration_s / DAY_S)

    async def job(self, action: IssueCertificates, write: Callable[[Manifest], Awaitable[Manifest]]) -> Manifest:
        """Makes or renews one Secret of a job; `write` sends it and answers with it as the server keeps it."""
        metadata = action.manifest["metadata"]
        if action.etcd:
            assert self._authority is not None, "platform() first"
            user = names.etcd_user(metadata["labels"][names.LABEL_JOB_UID])
            pem = issue(self._authority, [user], valid_days=self._duration_s / DAY_S)
        else:
            authority = await self._job_authority(action)
            pem = issue(authority, action.hosts, valid_days=self._duration_s / DAY_S)
        return await write(self._leaf(action.manifest, pem))

    def _leaf(self, manifest: Manifest, pem: Pem) -> Manifest:
        files = {"ca.crt": pem.authority, "tls.crt": pem.certificate, "tls.key": pem.key}
        return secret(manifest, files, self._clock() + self._duration_s * RENEW_SHARE)

    async def _job_authority(self, action: IssueCertificates) -> Authority:
        """The job's CA. One that was deleted is made anew; then every process needs its new certificate at once."""
        metadata = action.manifest["metadata"]
        namespace, job = metadata["namespace"], metadata["labels"][names.LABEL_JOB]
        uid = metadata["labels"][names.LABEL_JOB_UID]
        name = names.job_authority_name(job)
        if action.uid:  # a renewal: the CA should be there
            found = await self._read_authority(namespace, name, uid)
            if found is not None:
                return found
        fresh = make_authority(f"twinpod job {job}")
        labels = {key: value for key, value in metadata["labels"].items() if key != names.LABEL_MANAGED_BY}
        own = {**metadata, "name": name, "labels": labels, "annotations": {}}  # unwatched: no label that selects it
        try:
            await self._api.create(secret({"metadata": own}, {"tls.crt": fresh.certificate, "tls.key": fresh.key}))
        except AlreadyExists:
            found = await self._read_authority(namespace, name, uid)
            if found is None:
                raise
            return found
        return fresh

    async def _read_authority(self, namespace: str, name: str, job_uid: str = "") -> Authority | None:
        """None when there is none of this job."""
        try:
            found = await self._api.get(SECRET, namespace, name)
        except NotFound:
            return None
        if job_uid and (found["metadata"].get("labels") or {}).get(names.LABEL_JOB_UID) != job_uid:
            return None
        data = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        authority = Authority(certificate=data.get("tls.crt", b""), key=data.get("tls.key", b""))
        if not authority.sound:
            raise spoilt(name)
        return authority

    async def _etcd_authority(self) -> Authority:
        """The platform's CA. One that was lost is not made anew beside what it signed: etcd would refuse everybody."""
        found = await self._read_authority(self._namespace, names.ETCD_AUTHORITY)
        if found is not None:
            return found
        signed = [name for name in (names.ETCD_SERVER, names.ETCD_CLIENT) if await self._there(name)]
        if signed:
            raise EnvironmentFault(
                f"is gone, and Secrets that it signed are there: {', '.join(signed)}",
                where=f"Secret {self._namespace}/{names.ETCD_AUTHORITY}",
                mend="restore it from a backup, or delete those as well and restart the pods of etcd: every job's"
                " certificate is made anew then",
            )
        fresh = make_authority("twinpod platform etcd")
        files = {"tls.crt": fresh.certificate, "tls.key": fresh.key, "ca.crt": fresh.certificate}
        try:
            await self._api.create(secret(self._platform_metadata(names.ETCD_AUTHORITY), files))
        except AlreadyExists:
            found = await self._read_authority(self._namespace, names.ETCD_AUTHORITY)
            if found is None:
                raise
            return found
        return fresh

    async def _there(self, name: str) -> bool:
        try:
            await self._api.get(SECRET, self._namespace, name)
        except NotFound:
            return False
        return True

    async def _platform_leaf(self, wanted: PlatformSecret) -> None:
        assert self._authority is not None
        uid = ""
        try:
            found = await self._api.get(SECRET, self._namespace, wanted.name)
        except NotFound:
            pass
        else:
            uid = found["metadata"]["uid"]
            if not due(found, self._clock()):
                return
        ips = [host for host in wanted.hosts if is_address(host)]
        hosts = [host for host in wanted.hosts if not is_address(host)]
        pem = issue(self._authority, hosts, ips, valid_days=self._duration_s / DAY_S)
        try:
            await self._api.apply(self._leaf(self._platform_metadata(wanted.name), pem), uid)
        except ApiConflict:
            if uid:
                raise  # somebody changed it meanwhile; the next look decides again

    def _platform_metadata(self, name: str) -> Manifest:
        labels = {names.LABEL_NAME: names.MANAGED_BY, names.LABEL_COMPONENT: "etcd"}
        return {"metadata": {"name": name, "namespace": self._namespace, "labels": labels}}


def spoilt(name: str) -> Refused:
    """The refusal for an authority that somebody changed. Pure."""
    message = (
        f'Secret "{name}": its certificate and key are not a pair any more; restore it, or delete it to have a new one'
    )
    finding = Finding(reason=names.Reason.CHILD_INVALID.value, message=message)
    return Refused(message, where=f"Secret {name}", code=422, reason="Invalid", finding=finding)


def is_address(host: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

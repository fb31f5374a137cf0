"""Which Secrets with certificates are due. Pure; who acts makes keys and signs.

Two a job: the job's own authority with the certificate of its processes, and the client certificate for etcd, which
the platform's authority signs. They are made before the pods that mount them, and made again at half of their
life, or when somebody edited or deleted them; the processes take new files up without a restart.
"""

from __future__ import annotations

from twinpod.api import names
from twinpod.api.types import RLJob
from twinpod_operator.nouns import IssueCertificates, Observed
from twinpod_operator.render_containers import Platform
from twinpod_operator.render_run import Attempt

__all__ = ["certificates_due", "next_renewal"]


def certificates_due(observed: Observed, job: RLJob, platform: Platform, now: float) -> list[IssueCertificates]:
    """What to issue now."""
    run = Attempt(job=job, platform=platform, uid=observed.uid, number=1)
    name, there = job.metadata.name, {child.name: child for child in observed.children if child.kind == "Secret"}
    service = f"{names.service_name(name)}.{job.metadata.namespace}.svc"
    due: list[IssueCertificates] = []
    for secret, etcd in ((names.job_tls_name(name), False), (names.etcd_tls_name(name), True)):
        child = there.get(secret)
        if child is not None and (child.deleting or (now < child.renew_at and child.digest == child.revision)):
            continue
        manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": run.metadata(secret), "type": "Opaque"}
        hosts = () if etcd else (f"*.{service}", service, "localhost")
        due.append(IssueCertificates(manifest=manifest, uid=child.uid if child else "", etcd=etcd, hosts=hosts))
    return due


def next_renewal(observed: Observed) -> float:
    """When the first certificate is due; 0 when there is none."""
    return min((child.renew_at for child in observed.children if child.renew_at), default=0.0)

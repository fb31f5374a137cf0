"""`twinpod status DIR|rlj/NAME`: where a run stands now."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from twinpod.api.names import Condition
from twinpod.cli.progress import read_progress
from twinpod.cli.target import target_of
from twinpod.cli.words import duration, number
from twinpod.client.cluster import ClusterJob
from twinpod.errors import InputError
from twinpod.local.folder import RunFolder


def execute(arguments: argparse.Namespace) -> int:
    """A few lines from the books; works on a running and on a finished run."""
    target = target_of(arguments)
    if isinstance(target, ClusterJob):
        print("\n".join(lines_of(target.resource())))
        return 0
    folder = RunFolder(target)
    if not folder.job_file.exists():
        raise InputError("is not a run folder (it has no job.json)", where=str(target))
    seen = read_progress(folder.books)
    if seen is None or seen.progress is None:
        print("the master has not begun yet; see: twinpod logs", target)
        return 0
    now = seen.progress
    message, asleep = f": {now.message}" if now.message else "", "" if folder.in_use() else " (not running)"
    print(f"state       {now.state}{message}{asleep}")
    where = f"{min(now.iteration, now.iterations)} of {now.iterations}"
    print(f"iteration   {where}, phase {now.phase}, weights version {now.version}")
    if now.waiting_for:
        print(f"waiting for {now.waiting_for}")
    print(f"reward      {number(now.reward, 3)}, right {number(now.right, 3)}, length {number(now.length, 1)}")
    print(f"time left   {duration(now.eta_s)}")
    return 0


def lines_of(resource: Mapping[str, Any]) -> Iterator[str]:
    """A job on a cluster in a few lines: how far it is, and its conditions with their reasons. Pure."""
    status = resource.get("status") or {}
    conditions = status.get("conditions", [])
    if not conditions:
        yield "the operator has not seen the job yet; is it running? kubectl -n twinpod-system get pods"
        return
    wanted = resource["spec"].get("iterations", "?")
    at = f", phase {status['phase']}" if status.get("phase") else ""
    yield f"iteration   {status.get('iteration', 0)} of {wanted}{at}, weights version {status.get('weightVersion', 0)}"
    yield f"reward      {status.get('reward') or '-'}"
    yield f"pods        {status.get('pods') or '-'}, {status.get('restarts', 0)} restarts"
    order = {condition.value: place for place, condition in enumerate(Condition)}
    for condition in sorted(conditions, key=lambda one: order.get(one["type"], len(order))):
        why = f": {condition['message']}" if condition.get("message") else ""
        yield f"{condition['type']:<16}{condition['status']:<8}{condition.get('reason', '')}{why}"

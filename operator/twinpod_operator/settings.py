"""The operator's settings: its environment, read once. A variable that is wrong stops the process and is named."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinpod.api import names
from twinpod.errors import InputError
from twinpod_operator.login import ACCOUNT_FOLDER
from twinpod_operator.render_containers import Platform

DAY_S = 86_400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a person may choose for the operator; durations in seconds."""

    platform: Platform
    namespace: str  # its own
    identity: str  # unique to this process
    workers: int = 16
    resync_s: float = 300.0
    certificate_s: float = 90 * DAY_S
    lease_s: float = 15.0
    port: int = names.OPERATOR_PORT
    etcd_access: bool = False  # demand a user of everybody in etcd, and limit each job to its own keys
    progress_s: float = 5.0
    sweep_s: float = 300.0  # how often keys of jobs that are gone are looked for


def from_environment(environment: Mapping[str, str]) -> Settings:
    """InputError names the variable."""
    read = _Reader(environment)
    etcd = tuple(part.strip() for part in read.text("TWINPOD_ETCD").split(",") if part.strip())
    for member in etcd:
        host, _, port = member.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f'"{member}" is no host:port', where="TWINPOD_ETCD", mend="write host:port,host:port")
    secrets = read.text("TWINPOD_IMAGE_PULL_SECRETS", "")
    platform = Platform(
        master_image=read.text("TWINPOD_MASTER_IMAGE"),
        trainer_image=read.text("TWINPOD_TRAINER_IMAGE"),
        inference_image=read.text("TWINPOD_INFERENCE_IMAGE"),
        etcd=etcd,
        image_pull_policy=read.one_of("TWINPOD_IMAGE_PULL_POLICY", ("IfNotPresent", "Always", "Never")),
        image_pull_secrets=tuple(part.strip() for part in secrets.split(",") if part.strip()),
        storage_class=read.text("TWINPOD_STORAGE_CLASS", ""),
        deletion_s=read.duration("TWINPOD_DELETION_S", 120.0, 1.0),
    )
    return Settings(
        platform=platform,
        namespace=read.text("TWINPOD_NAMESPACE", _own_namespace()),
        identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        workers=int(read.number("TWINPOD_WORKERS", 16, 1, 256)),
        resync_s=read.duration("TWINPOD_RESYNC_S", 300.0, 1.0),
        certificate_s=read.duration("TWINPOD_CERTIFICATE_S", 90 * DAY_S, 60.0),
        lease_s=read.duration("TWINPOD_LEASE_S", 15.0, 3.0),
        port=int(read.number("TWINPOD_PORT", names.OPERATOR_PORT, 0, 65_535)),
        sweep_s=read.duration("TWINPOD_SWEEP_S", 300.0, 1.0),
        etcd_access=read.one_of("TWINPOD_ETCD_ACCESS", ("false", "true")) == "true",
    )


class _Reader:
    """Reads variables; each default stands at its place of use, the first of a choice is its default."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environment.get(name, "").strip()
        if value:
            return value
        if default is None:
            raise InputError("is not set", where=name, mend="set it in the operator's Deployment")
        return default

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, choices[0])
        if value not in choices:
            raise InputError(f'"{value}" is none of {", ".join(choices)}', where=name)
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.text(name, str(default))
        try:
            found = float(value)
        except ValueError as error:
            raise InputError(f'"{value}" is no number', where=name) from error
        if not least <= found <= most:
            raise InputError(f"{value} is not from {least:g} to {most:g}", where=name)
        return found

    def duration(self, name: str, default: float, least: float) -> float:
        """Seconds, or a number with s, m, h or d behind it."""
        value = self.text(name, str(default))
        number, unit = (value[:-1], value[-1]) if value[-1] in _UNITS else (value, "s")
        try:
            found = float(number) * _UNITS[unit]
        except ValueError as error:
            raise InputError(f'"{value}" is no duration', where=name, mend='write seconds, or "90m", "24h"') from error
        if found < least:
            raise InputError(f"{value} is less than {least:g} s", where=name)
        return found


def _own_namespace(account: Path = ACCOUNT_FOLDER) -> str:
    """Of the pod that this process runs in; outside of pods the default name."""
    file = account / "namespace"
    return file.read_text().strip() if os.access(file, os.R_OK) else "twinpod-system"

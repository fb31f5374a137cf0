"""The environment of a process in a pod, parsed once into a record; nobody below reads `os.environ` for these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twinpod.api import names
from twinpod.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Who this process is and where its things are. Folders have the defaults of `names`, each may be overridden."""

    job_name: str
    namespace: str
    job_uid: str
    pod: str  # stable name, without the attempt: J-hybrid-0
    attempt: int  # which of the pods of that name this is; each replacement has a higher one
    address: str  # host by which other pods reach this one, without a port
    master: str  # host:port of the master's gRPC service
    etcd: tuple[str, ...]  # host:port of each member
    job_file: Path = field(default=Path(names.JOB_FILE))
    tls: Path = field(default=Path(names.TLS_FOLDER))
    etcd_tls: Path = field(default=Path(names.ETCD_TLS_FOLDER))
    state: Path = field(default=Path(names.STATE_FOLDER))
    snapshots: Path = field(default=Path(names.SNAPSHOTS_FOLDER))
    run: Path = field(default=Path(names.RUN_FOLDER))
    shm: Path = field(default=Path(names.ARENA_FOLDER))
    pool_file: Path | None = None  # pool.json, in a pod of a RolloutPool
    grace_s: int = 30  # from SIGTERM to SIGKILL
    modules: tuple[str, ...] = ()  # folders with Python modules of the user's, searched last

    @property
    def model_folder(self) -> Path:
        """Where the processes of a pod find config.json and the tokenizer."""
        return self.run / names.MODEL_FOLDER

    @property
    def input_error_file(self) -> Path:
        """Where a rank leaves its line when the input is wrong: torchrun makes every exit code a 1."""
        return self.run / names.INPUT_ERROR_FILE


_TEXTS = {
    "job_name": "TWINPOD_JOB_NAME",
    "namespace": "TWINPOD_NAMESPACE",
    "job_uid": "TWINPOD_JOB_UID",
    "pod": "TWINPOD_POD",
    "address": "TWINPOD_ADDRESS",
    "master": "TWINPOD_MASTER",
}
_NUMBERS = {"attempt": "TWINPOD_ATTEMPT", "grace_s": "TWINPOD_GRACE_S"}
_PATHS = {
    "job_file": "TWINPOD_JOB_FILE",
    "tls": "TWINPOD_TLS",
    "etcd_tls": "TWINPOD_ETCD_TLS",
    "state": "TWINPOD_STATE",
    "snapshots": "TWINPOD_SNAPSHOTS",
    "run": "TWINPOD_RUN",
    "shm": "TWINPOD_SHM",
    "pool_file": "TWINPOD_POOL_FILE",
}


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The record of `variables` (the process's own when None). InputError names every variable that is missing."""
    source = os.environ if variables is None else variables
    needed = [*_TEXTS.values(), "TWINPOD_ETCD"]
    if missing := [name for name in needed if not source.get(name)]:
        raise InputError(
            f"not set: {', '.join(missing)}",
            where="environment",
            mend="these processes are started by the operator or by `twinpod run --local`, not by hand",
        )
    texts = {key: source[name] for key, name in _TEXTS.items()}
    numbers = {key: source[name] for key, name in _NUMBERS.items() if source.get(name)}
    if wrong := [key for key, text in numbers.items() if not text.isdecimal()]:
        raise InputError(f"{_NUMBERS[wrong[0]]} is {numbers[wrong[0]]!r}, not a number", where="environment")
    whole = {"attempt": 1} | {key: int(text) for key, text in numbers.items()}
    paths = {key: Path(source[name]) for key, name in _PATHS.items() if source.get(name)}
    modules = tuple(folder for folder in source.get("TWINPOD_MODULES", "").split(os.pathsep) if folder)
    members = tuple(member.strip() for member in source["TWINPOD_ETCD"].split(",") if member.strip())
    return Environment(**texts, **paths, **whole, etcd=members, modules=modules)  # type: ignore[arg-type]

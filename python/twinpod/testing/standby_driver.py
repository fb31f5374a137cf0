"""For tests and benches: weights published without a trainer, and a standby driven without a half.

`publish` writes plain tensors into arenas the way that Megatron ranks of any tensor and pipeline parallel size would,
and the manifest beside them. `StandbyDriver` speaks the standby's pipe protocol, blocking.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash

from twinpod.arena.file import Arena, combined_digest
from twinpod.arena.layout import plan_layout
from twinpod.errors import EngineFault
from twinpod.records.codec import dumps
from twinpod.records.weights import ShardRecord, TensorPart, WeightVersion

__all__ = ["Published", "StandbyDriver", "publish"]

_CUT = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1", "embed_tokens", "lm_head"), 0)
_CUT |= dict.fromkeys(("o_proj", "down_proj", "out_proj", "fc2"), 1)
"""Module of a parameter's name -> axis along which Megatron's tensor-parallel ranks cut it."""

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
Published = tuple[WeightVersion, str, str]
"""The version, the manifest's path, the digest of the manifest's bytes."""


def publish(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    version: int,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> Published:
    """Write `tensors` (Hugging Face names) as `version`: one new arena a rank, and the manifest, in `folder`."""
    layers = 1 + max((int(found[1]) for name in tensors if (found := _LAYER.search(name))), default=0)
    shards = []
    for stage in range(pipeline_parallel):
        mine = {name: x for name, x in tensors.items() if _stage(name, layers, pipeline_parallel) == stage}
        for rank in range(tensor_parallel):
            owner = f"played/rank-{stage * tensor_parallel + rank}"
            shards.append(_write(folder, owner, _cut(mine, rank, tensor_parallel), version))
    record = WeightVersion(
        version=version,
        epoch=1,
        iteration=version,
        digest=combined_digest([shard.digest for shard in shards]),
        shards=tuple(shards),
    )
    path = folder / f"version-{version}.json"
    path.write_text(dumps(record), encoding="utf-8")
    return record, str(path), "xxh3:" + xxhash.xxh3_64_hexdigest(path.read_bytes())


def _stage(name: str, layers: int, stages: int) -> int:
    if found := _LAYER.search(name):
        return int(found[1]) * stages // layers
    return 0 if "embed" in name else stages - 1


def _cut(tensors: Mapping[str, torch.Tensor], rank: int, size: int) -> list[tuple[TensorPart, torch.Tensor]]:
    """What tensor-parallel rank `rank` of `size` owns; tensors that are not cut belong to rank 0."""
    owned = []
    for name, whole in tensors.items():
        module = name.rsplit(".", 2)[-2]
        axis = _CUT.get(module) if size > 1 else None
        if axis is not None and axis < whole.dim():
            step = whole.shape[axis] // size
            start = rank * step
            mine = whole.narrow(axis, start, step if rank < size - 1 else whole.shape[axis] - start).contiguous()
        elif rank == 0:
            axis, start, mine = None, 0, whole.contiguous()
        else:
            continue
        part = TensorPart(
            name=name,
            dtype=_NAMES[mine.dtype],
            shape=tuple(mine.shape),
            full_shape=tuple(whole.shape),
            axis=axis,
            start=start,
            offset=0,
            nbytes=0,
        )
        owned.append((part, mine))
    return owned


def _write(folder: Path, owner: str, owned: list[tuple[TensorPart, torch.Tensor]], version: int) -> ShardRecord:
    layout = plan_layout(owner, [part for part, _ in owned])
    path = folder / f"{owner.rpartition('/')[2]}.arena"
    slot = version % 2
    with Arena.create(path, layout) as arena:
        for place, (_, tensor) in zip(layout.parts, owned, strict=True):
            raw = arena.slot(slot)[place.offset : place.offset + place.nbytes]
            raw[:] = tensor.flatten().view(torch.uint8).numpy()
        digest = arena.digest(slot)
    return ShardRecord(layout=layout, path=str(path), slot=slot, digest=digest, address="")


class StandbyDriver:
    """A standby as a child process, asked one thing at a time. Events that arrive meanwhile are kept in `events`.

    `threads`: OpenMP threads of each process; 0 leaves it to torch (one a core). `arguments`: of the standby.
    """

    def __init__(self, log: Path, *, threads: int = 1, arguments: Sequence[str] = ()) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "twinpod.inference.standby", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self.ready = self.event("ready")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; EngineFault carries the standby's `error`."""
        self._number += 1
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps({"op": op, "id": self._number, **fields}) + "\n").encode())
        self.process.stdin.flush()
        while (message := self._read()).get("id") != self._number:
            self.events.append(message)
        if "error" in message:
            raise EngineFault(message["error"], where="standby")
        return message

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event of this name (or take one that came before)."""
        for index, message in enumerate(self.events):
            if message.get("event") == name:
                return self.events.pop(index)
        while (message := self._read()).get("event") != name:
            self.events.append(message)
        return message

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineFault(f"the standby ended with {self.process.wait()}", where="standby", mend="read its log")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> int:
        """Hang up and wait for the end; returns the exit code. Engines die with it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return self.process.wait(30)

    def __enter__(self) -> StandbyDriver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

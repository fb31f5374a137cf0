"""Seconds of a weight load into a real SGLang engine: our arena and loader against SGLang's own two ways.

The model is the one of `publish`: 0.86 GB of bfloat16 in 291 tensors. One engine, everything in shared memory, the ways
in turn, so that noise of the machine meets all alike:

- ours: `SGLangEngine.load` of a version in an arena (announcement, load, observed version; the proof of the bytes is
  timed apart, as `verify_s`);
- disk: `/update_weights_from_disk` of a safetensors folder in /dev/shm;
- bucket: `/update_weights_from_tensor` with `load_format: flattened_bucket`. SGLang means it for a tensor that the
  engine maps, as by CUDA IPC. On a CPU its serializer passes a file descriptor over a socket, which kills the server;
  torch's other way of sharing, by the name of a file in /dev/shm, maps the same bytes and is safe. Flattening and
  serializing (the sender's part, as publication is ours) are not in the time.

That all three really load is seen by SGLang's own checksum of the engine's weights, with other weights between.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from tests.bench.publish import SHAPE, hf_config
from tests.bench.report import Say

from twinpod.checkpoint.verify import verify_version
from twinpod.errors import IntegrityError
from twinpod.inference.sglang_engine import EngineSpec, server_args
from twinpod.rpc.ports import free_port
from twinpod.testing.engine_client import GeneratingEngine
from twinpod.testing.standby_driver import Published, StandbyDriver, publish
from twinpod.trainer.convert.plan import full_tensors

KEY = "bench"
Step = tuple[str, dict[str, Any]]
"""Path and body of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSeconds:
    """One entry a repeat."""

    ours: list[float]
    disk: list[float]
    bucket: list[float]
    verify: list[float]
    nbytes: int
    tensors: int


def measure(repeats: int, say: Say) -> LoadSeconds:
    """Starts the engine, loads `repeats` times by each way."""
    with tempfile.TemporaryDirectory(prefix="twinpod-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        disk = folder / "model"
        disk.mkdir()
        (disk / "config.json").write_text(hf_config(), encoding="utf-8")
        say("writing 0.9 GB twice", 0.0)
        tensors = make_tensors()
        published = publish(folder, tensors, 1)
        save_file(tensors, disk / "model.safetensors", {"format": "pt"})
        with StandbyDriver(folder / "standby.log") as standby:
            port = free_port()
            spec = EngineSpec(
                model_path=str(disk),
                port=port,
                api_key=KEY,
                kv_tokens=4096,
                context_length=1024,
                dtype="bfloat16",
                max_running=8,
            )
            standby.ask("start", args=server_args(spec), log=str(folder / "engine.log"))
            try:
                return asyncio.run(_rounds(standby, port, published, tensors, disk, repeats, say))
            except Exception:
                shutil.copy(folder / "engine.log", Path(tempfile.gettempdir()) / "twinpod-bench-engine.log")
                raise


def make_tensors() -> dict[str, torch.Tensor]:
    """The model under Hugging Face names, random."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 2**14, size, generator=generator, dtype=torch.int16).view(torch.bfloat16)
        for name, size in full_tensors(SHAPE).items()
    }


async def _rounds(
    standby: StandbyDriver,
    port: int,
    published: Published,
    tensors: dict[str, torch.Tensor],
    disk: Path,
    repeats: int,
    say: Say,
) -> LoadSeconds:
    version, manifest, digest = published
    payload = standby.ask("payload", manifest=manifest, digest=digest)["payload"]
    bucket = Bucket(tensors)
    from_disk = {"model_path": str(disk), "load_format": "auto", "weight_version": "1"}
    found: dict[str, list[float]] = {"ours": [], "disk": [], "bucket": [], "verify": []}
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        GeneratingEngine(url, KEY, timeout_s=300) as engine,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=300, trust_env=False) as http,
    ):
        await engine.wait_healthy(300)
        sums = {(await engine.checksum())}  # of the dummy weights
        for turn in range(-1, repeats):  # the first round faults everything in and checks that all ways load the same
            seconds = {"ours": await engine.load(payload, 1)}
            sums.add(ours := await engine.checksum())
            for name, steps in (
                ("disk", [("/update_weights_from_disk", from_disk)]),
                ("bucket", bucket.steps()),
            ):
                if turn < 0:
                    await _spoil(http)
                seconds[name] = await _post(http, steps)
                if turn < 0 and await engine.checksum() != ours:
                    raise IntegrityError(f"{name} left other weights than ours", where="load bench")
            seconds["verify"] = verify_version(version).seconds
            if turn >= 0:
                for name, value in seconds.items():
                    found[name].append(value)
            say(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), (turn + 2) / (repeats + 2))
        if len(sums) != 2:
            raise IntegrityError("the engine's checksum did not change with its weights", where="load bench")
    parts = version.shards[0].layout.parts
    return LoadSeconds(**found, nbytes=sum(part.nbytes for part in parts), tensors=len(parts))


async def _post(http: httpx.AsyncClient, steps: list[Step]) -> float:
    """Seconds of the requests, which must succeed."""
    began = time.perf_counter()
    for path, body in steps:
        answer = await http.post(path, json=body)
        if answer.status_code != 200 or not answer.json().get("success"):
            raise IntegrityError(f"{path} failed: {answer.text[:300]}", where="load bench")
    return time.perf_counter() - began


async def _spoil(http: httpx.AsyncClient) -> None:
    """Other weights, by SGLang's own means for tests."""
    answer = await http.post("/weights_checker", json={"action": "reset_tensors"})
    if answer.status_code != 200:
        raise IntegrityError(f"cannot reset the weights: {answer.text[:300]}", where="load bench")


class Bucket:
    """SGLang's bucket of all tensors, in shared memory as long as this lives."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

        torch.multiprocessing.set_sharing_strategy("file_system")
        bucket = FlattenedTensorBucket(named_tensors=list(tensors.items()))
        self._content = {
            "flattened_tensor": bucket.get_flattened_tensor().share_memory_(),
            "metadata": bucket.get_metadata(),
        }

    def steps(self) -> list[Step]:
        """The requests of one load. Each load needs its own: torch counts a reference for every name that it hands
        out, and frees the memory under the engine when one is used twice.
        """
        content = io.BytesIO()
        ForkingPickler(content).dump(self._content)
        body = {
            "serialized_named_tensors": [base64.b64encode(content.getvalue()).decode()],
            "load_format": "flattened_bucket",
            "weight_version": "1",
        }
        return [("/begin_weight_update", {}), ("/update_weights_from_tensor", body), ("/end_weight_update", {})]

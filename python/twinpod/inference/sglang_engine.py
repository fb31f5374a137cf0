"""SGLang from outside: the arguments to start it with and a client of its HTTP interface on loopback. No torch, no
SGLang import.

What SGLang 0.5.23 does, found out by trying, and what follows from it here:

- Log-probs are `log(softmax(logits / temperature))` over the whole vocabulary, before top-p: at temperature 1 and top-p
  1 exactly the trainer's.
- An aborted request that was running answers with what it generated so far; one that was waiting answers with no
  tokens. Both end as "abort".
- Weights may only change while nothing runs: otherwise the cache of the old weights cannot be flushed. `load` flushes
  always and treats a refusal as a fault, so keys and values of two versions never mix.
- `/health` takes a second by design (it sleeps, then looks); `/model_info` answers at once and names the weight
  version.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx

from twinpod.errors import EngineFault, IntegrityError, ProtocolError, TwinpodError, Unreachable, WrongVersion
from twinpod.inference.names import ATTENTION_BACKEND, BROKEN_VERSION, LOADER
from twinpod.rpc.sglang_http import SGLangHttp

__all__ = ["EngineSpec", "SGLangEngine", "server_args"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is started with."""

    model_path: str  # folder with config.json; no weights are read from it
    port: int  # on 127.0.0.1
    api_key: str
    kv_tokens: int | None  # size of the key-value cache; None: as much as memory_fraction has room for
    context_length: int  # longest prompt + answer
    dtype: str = "float32"  # float32 | bfloat16 | float16
    tensor_parallel: int = 1
    accelerators: bool = False  # False: the CPU platform
    first_accelerator: int = 0  # of its tensorParallel ones, as the container numbers them
    attention_backend: str = ""  # empty: ours on a CPU, SGLang's choice on an accelerator
    max_running: int = 256  # sequences decoded at the same time
    seed: int = 0  # of the sampler; give each start another one, or every iteration draws the same numbers
    sleep: bool = False  # life cycle Sleep: memory that can be given back (accelerators only)
    memory_fraction: float = 0.8  # of an accelerator's free memory, weights and cache together


def server_args(spec: EngineSpec) -> dict[str, Any]:
    """SGLang's ServerArgs as a dict, for the standby's `start`."""
    arguments: dict[str, Any] = {
        "model_path": spec.model_path,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,
        "incremental_streaming_output": True,  # a streamed event has the tokens since the last one
        "host": "127.0.0.1",
        "port": spec.port,
        "api_key": spec.api_key,
        "dtype": spec.dtype,
        "tp_size": spec.tensor_parallel,
        "context_length": spec.context_length,
        **({"max_total_tokens": spec.kv_tokens} if spec.kv_tokens is not None else {}),
        "max_running_requests": spec.max_running,
        "custom_weight_loader": [LOADER],
        "random_seed": spec.seed,
        "sleep_on_idle": True,
        "grammar_backend": "none",
        "log_level": "info",
        "log_level_http": "warning",
        "enable_memory_saver": spec.sleep and spec.accelerators,
    }
    if spec.accelerators:
        arguments["mem_fraction_static"] = spec.memory_fraction
        arguments["base_gpu_id"] = spec.first_accelerator
        if spec.attention_backend:
            arguments["attention_backend"] = spec.attention_backend
    else:
        arguments |= {
            "device": "cpu",
            "attention_backend": spec.attention_backend or ATTENTION_BACKEND,
            "sampling_backend": "pytorch",
            "disable_cuda_graph": True,
            "disable_overlap_schedule": True,
            "mem_fraction_static": 0.5,
        }
    return arguments


class SGLangEngine:
    """Client of one engine. Use it in one event loop; `close` (or `async with`) when done.

    Every method raises EngineFault (retryable: restart the engine) when SGLang refuses or breaks off, and Unreachable
    when it does not answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        tensor_parallel: int = 1,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._ranks = tensor_parallel
        self._http = SGLangHttp(url, api_key, _refused, timeout_s=timeout_s, transport=transport)

    async def wait_healthy(self, deadline_s: float) -> dict[str, Any]:
        """Wait until the server answers; returns SGLang's model info. Unreachable after `deadline_s` seconds."""
        end = time.monotonic() + deadline_s
        while True:
            left = end - time.monotonic()
            try:
                info: dict[str, Any] = await self._http.call("GET", "/model_info", timeout_s=max(0.05, left))
            except TwinpodError as error:  # not up yet
                if time.monotonic() > end:
                    raise Unreachable(
                        f"the engine did not answer within {deadline_s:g} s",
                        where=self.url,
                        mend="read the engine's log",
                    ) from error
            else:
                return info
            await asyncio.sleep(0.01)  # polling a process that is starting: there is nothing to wait on

    async def weight_version(self) -> str:
        """The version that the server says it serves; "default" before any load."""
        return str((await self._http.call("GET", "/model_info"))["weight_version"])

    async def load(self, payload: str, version: int) -> float:
        """Load the weights that `payload` names (standby op `payload`) as `version`; returns the seconds. Nothing may
        be running.

        After an error the engine may hold a mixture of weights: it says so itself, by the version `broken`, until a
        load succeeds or it is restarted. IntegrityError and ProtocolError of the loader come through as themselves.
        """
        began = time.monotonic()
        await self._http.call("POST", "/begin_weight_update", {})
        failure: TwinpodError | None = None
        try:
            await self._http.call(
                "POST",
                "/update_weights_from_tensor",
                {
                    "serialized_named_tensors": [payload] * self._ranks,
                    "load_format": LOADER,
                    "flush_cache": True,
                    "weight_version": str(version),
                },
            )
        except TwinpodError as error:
            failure = error
        await self._http.call("POST", "/end_weight_update", {})
        if failure is not None:
            await self._http.call(
                "POST", "/update_weight_version", {"new_version": BROKEN_VERSION, "abort_all_requests": True}
            )
            raise failure
        if (observed := await self.weight_version()) != str(version):
            raise WrongVersion(
                f"asked for weights {version}, the engine serves {observed}", where=self.url, mend="restart the engine"
            )
        return time.monotonic() - began

    async def abort_all(self) -> None:
        """Cut all generations."""
        await self._http.call("POST", "/abort_request", {"rid": "", "abort_all": True})

    async def release(self) -> None:
        """Life cycle Sleep: give the accelerator's memory back. Nothing may run; a second release kills SGLang."""
        await self._http.call("POST", "/release_memory_occupation", {})

    async def resume(self) -> None:
        """Undo `release`; weights are undefined until the next `load`. SGLang dies of a resume without a release."""
        await self._http.call("POST", "/resume_memory_occupation", {})

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def _refused(where: str, status: int, reason: str) -> TwinpodError:
    """The loader's own error when the reason names one, else EngineFault."""
    for kind in (IntegrityError, ProtocolError):
        _, found, line = reason.partition(f"{kind.__name__}: ")
        if found:
            return kind(line, where=where)
    return EngineFault(f"refused with status {status}: {reason}", where=where)

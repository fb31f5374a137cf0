"""Everything that Megatron-core 0.16 needs where there is no CUDA. Used only there.

Megatron assumes CUDA in five places. Each is answered here, from outside, so that the rest of the room reads as on a
GPU:

1. `torch.cuda.current_device()`, `synchronize()`, `empty_cache()` in its communication code -> a CPU device, nothing,
   nothing.
2. The CUDA random number tracker around dropout, initialisation and recomputation -> a tracker that does nothing
   (dropout is 0 here, and weights come from `weights.py`).
3. `device="cuda"` and `.cuda()` in the pipeline schedules, masks and tied embeddings -> `CpuDevices`, a
   `TorchFunctionMode`.
4. Fused kernels, batched p2p with a device synchronisation, CUDA initialisation -> `CONFIG`.
5. Its DDP wrapper and optimizers insist on CUDA tensors -> plain AdamW, and the gradient sums that
   `distributed/finalize_model_grads.py` and `optimizer/clip_grads.py` would have made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.overrides import TorchFunctionMode

from twinpod.records.training import TrainSettings

CPU = torch.device("cpu")

# Settings of TransformerConfig that differ from a GPU's (place 4).
CONFIG: dict[str, Any] = {
    "use_cpu_initialization": True,
    "batch_p2p_comm": False,
    "batch_p2p_sync": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "cross_entropy_loss_fusion": False,
}


class NullRngTracker:
    """Stands in for Megatron's `CudaRNGStatesTracker`: random state on a CPU is torch's own."""

    def is_initialized(self) -> bool:
        """Always ready."""
        return True

    def reset(self) -> None:
        """Nothing is held."""

    def add(self, name: str, seed: int) -> None:
        """Nothing is held."""

    def get_states(self) -> dict[str, Tensor]:
        """Nothing is held."""
        return {}

    def set_states(self, states: dict[str, Tensor]) -> None:
        """Nothing is held."""

    @contextmanager
    def fork(self, name: str = "") -> Iterator[None]:
        """Run the body with the ordinary random state."""
        yield


class CpuDevices(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed by mypy
    """Turns `device="cuda"` and `.cuda()` into the CPU in every torch call of its body."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for each function."""
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs and kwargs.get("device") == "cuda":
            kwargs = {**kwargs, "device": CPU}
        return func(*args, **(kwargs or {}))


def install() -> None:
    """Answer for CUDA in this process. Only the trainer's rank process calls this, and only without a GPU."""
    assert not torch.cuda.is_available(), "the CPU platform must not be installed where there is a GPU"
    torch.cuda.current_device = lambda: CPU
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    megatron_random._CUDA_RNG_STATE_TRACKER = NullRngTracker()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    megatron_random._get_cuda_rng_state = lambda *_args, **_kwargs: torch.empty(0)
    megatron_random._set_cuda_rng_state = lambda *_args, **_kwargs: None
    megatron_random._fork_rng = CpuDevices  # around what is recomputed: torch takes the caller's mode away in backward


class CpuOptimizer:
    """Plain AdamW over a rank's weights, with Megatron's gradient sums and its clip (place 5); see `Optimizer`.

    In bfloat16 gradients are summed over micro-batches in float32, as Megatron's DDP does (`main_grad`).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._model = model
        half = any(parameter.dtype is not torch.float32 for parameter in self._named.values())
        self._main = {name: parameter.detach().float() for name, parameter in self._named.items()} if half else {}
        self._adamw: torch.optim.AdamW | None = None
        self._clip = 0.0
        for parameter in self._named.values() if half else ():
            parameter.register_post_accumulate_grad_hook(_sum_in_float32)

    def begin(self, settings: TrainSettings) -> None:
        """See Optimizer."""
        self._clip = settings.clip_grad
        decayed, plain = split_decay(list((self._main or self._named).items()))
        self._adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
        )

    def zero_grad(self) -> None:
        """See Optimizer."""
        for name, parameter in self._named.items():
            parameter.grad = None
            if self._main:
                parameter.main_grad = torch.zeros_like(self._main[name])

    def step(self) -> float:
        """See Optimizer."""
        assert self._adamw is not None, "begin first"
        sum_gradients(self._model, self._named)
        norm = gradient_norm(self._named.values())
        if not math.isfinite(norm):
            return norm
        if 0 < self._clip < norm:
            for parameter in self._named.values():
                gradient_of(parameter).mul_(self._clip / (norm + 1.0e-6))
        for name, main in self._main.items():
            main.grad = gradient_of(self._named[name])
        self._adamw.step()
        self._round()
        return norm

    def end(self) -> None:
        """See Optimizer."""
        self._adamw = None

    def drop_gradients(self) -> None:
        """See Optimizer."""
        for tensor in (*self._named.values(), *self._main.values()):
            tensor.grad = None
            tensor.main_grad = None

    def main_tensors(self) -> Mapping[str, Tensor]:
        """See Optimizer."""
        return self._main

    def blank(self) -> Mapping[str, Tensor]:
        """See Optimizer."""
        return self._main or self._named

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """See Optimizer."""
        for name, tensor in self.blank().items():
            if tensor is not weights[name]:
                tensor.detach().copy_(weights[name])
        self._round()

    def gather(self) -> Mapping[str, Tensor]:
        """See Optimizer."""
        return self._main or self._named

    def _round(self) -> None:
        for name, main in self._main.items():
            self._named[name].detach().copy_(main)


def _sum_in_float32(parameter: Tensor) -> None:
    """Called by autograd with each micro-batch's gradient; None of an output layer, which adds to the sum itself."""
    if parameter.grad is not None:
        parameter.main_grad.add_(parameter.grad)
        parameter.grad = None


def gradient_of(parameter: Tensor) -> Tensor:
    """The summed gradient; zeros where nothing reached the parameter."""
    found = getattr(parameter, "main_grad", None)
    if found is None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found = parameter.grad
    return found


def split_decay(named: Sequence[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Megatron's rule (optimizer/__init__.py): vectors (norms, biases) are not decayed."""
    return [p for _, p in named if p.ndim > 1], [p for _, p in named if p.ndim <= 1]


def sum_gradients(model: torch.nn.Module, named: Mapping[str, Tensor]) -> None:
    """The sums of `finalize_model_grads`.

    Over data-parallel ranks; of head norms, and of what sees a part of the sequence, over tensor-parallel ranks; of a
    tied embedding over the pipeline's ends.
    """
    _all_reduce([gradient_of(p) for p in named.values()], parallel_state.get_data_parallel_group())
    parts = [
        gradient_of(parameter)
        for name, parameter in named.items()
        if "q_layernorm" in name or "k_layernorm" in name or getattr(parameter, "sequence_parallel", False)
    ]
    _all_reduce(parts, parallel_state.get_tensor_model_parallel_group())
    if getattr(model, "share_embeddings_and_output_weights", False) and parallel_state.is_rank_in_embedding_group():
        _all_reduce([gradient_of(model.shared_embedding_or_output_weight())], parallel_state.get_embedding_group())


def _all_reduce(gradients: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum over `group`, as one message."""
    if group.size() == 1 or not gradients:
        return
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat, group=group)
    for gradient, summed in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(summed)


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """2-norm over the whole model: shared and replicated parameters count once (optimizer/clip_grads.py)."""
    squares = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        if param_is_not_shared(parameter) and tensor_parallel.param_is_not_tensor_parallel_duplicate(parameter):
            squares += gradient_of(parameter).double().square().sum()
    dist.all_reduce(squares, group=parallel_state.get_model_parallel_group())
    return math.sqrt(float(squares))

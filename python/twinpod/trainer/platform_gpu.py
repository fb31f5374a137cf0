"""Megatron's own DDP and distributed optimizer, for ranks with a GPU.

Thin on purpose, and along Megatron-core's documented path (`examples/run_simple_mcore_train_loop.py`,
`megatron/training/training.py`). It could not be run on the machine where this was written: it is checked by types
and by reading, not by tests.
"""

from __future__ import annotations

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.utils import get_model_config


def wrap(model: MegatronModule, *, half: bool) -> DistributedDataParallel:
    """Mixed precision and gradient buffers around the model; gradients are finalised by the schedule."""
    config = get_model_config(model)
    inner = Float16Module(config, model) if half else model
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=True
    )
    wrapped = DistributedDataParallel(config, ddp, inner)
    config.finalize_model_grads_func = finalize_model_grads
    return wrapped


def release(model: DistributedDataParallel) -> None:
    """After the storages of parameters were given back: drop gradient buffers and what an optimizer left on them."""
    for parameter in model.parameters():
        if hasattr(parameter, "main_param"):  # a float32 shard; the next optimizer makes its own
            del parameter.main_param
    model.offload_grad_buffers()  # frees, synchronises and empties torch's cache


def restore(model: DistributedDataParallel) -> None:
    """Make the gradient buffers anew, zeroed."""
    model.restore_grad_buffers()


class GpuOptimizer:
    """A fresh Megatron distributed optimizer; gradients were already summed by the schedule's finalisation."""

    def __init__(
        self,
        model: DistributedDataParallel,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip: float,
        half: bool,
    ) -> None:
        config = OptimizerConfig(
            optimizer="adam",
            lr=lr,
            min_lr=lr,
            weight_decay=weight_decay,
            adam_beta1=betas[0],
            adam_beta2=betas[1],
            adam_eps=eps,
            clip_grad=clip,
            bf16=half,
            use_distributed_optimizer=True,
        )
        self._model = model
        self._optimizer = get_megatron_optimizer(config, [model])

    def zero_grad(self) -> None:
        """Clear the gradient buffers of DDP and the optimizer."""
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()

    def step(self) -> float:
        """Clip and update; returns the gradient norm before clipping."""
        _, norm, _ = self._optimizer.step()
        return float(norm or 0.0)

"""Megatron's own DDP and distributed optimizer, for ranks with a GPU.

Thin on purpose, and along Megatron-core's documented path (`examples/run_simple_mcore_train_loop.py`,
`megatron/training/training.py`). No GPU was at hand where this was written: a
test runs it with CPU tensors that say they are CUDA's, over gloo, against `platform_cpu`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.utils import get_model_config
from torch import Tensor

from twinpod.records.training import TrainSettings


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
    """After the storages of parameters were given back: the gradient buffers too."""
    model.offload_grad_buffers()  # frees, synchronises and empties torch's cache


def restore(model: DistributedDataParallel) -> None:
    """Make the gradient buffers anew, zeroed."""
    model.restore_grad_buffers()


class GpuOptimizer:
    """Megatron's distributed optimizer, once a rank; see `Optimizer`.

    Each data-parallel rank has a range of the main weights of each parameter (`DistributedOptimizer`,
    `shard_fp32_from_float16_groups`). Gradients were already summed by the schedule's finalisation.
    """

    def __init__(self, model: DistributedDataParallel, *, half: bool) -> None:
        self._named = {name.replace("module.", ""): parameter for name, parameter in model.named_parameters()}
        self._model = model
        self._config = OptimizerConfig(optimizer="adam", lr=0.0, min_lr=0.0, bf16=half, use_distributed_optimizer=True)
        self._optimizer = get_megatron_optimizer(self._config, [model])
        self._main = dict(self._shards()) if half else {}

    def begin(self, settings: TrainSettings) -> None:
        """See Optimizer."""
        self._config.clip_grad = settings.clip_grad
        self.end()
        for one in self._optimizer.chained_optimizers:
            for group in one.optimizer.param_groups:
                group.pop("step", None)  # Transformer Engine's FusedAdam counts here, torch's in its state
                group["lr"], group["betas"], group["eps"] = settings.learning_rate, settings.betas, settings.eps
                group["weight_decay"] = settings.weight_decay * group["wd_mult"]

    def zero_grad(self) -> None:
        """See Optimizer."""
        self._model.zero_grad_buffer()
        self._optimizer.zero_grad()

    def step(self) -> float:
        """See Optimizer."""
        whole, clip = self._optimizer, self._config.clip_grad
        whole.prepare_grads()
        norm = float(whole.get_grad_norm())
        if not math.isfinite(norm):
            return norm
        for one in whole.chained_optimizers if clip > 0 else ():
            clip_grad_by_total_norm_fp32(one.get_parameters(), max_norm=clip, total_norm=norm)
        whole.step_with_ready_grads()
        return norm

    def drop_gradients(self) -> None:
        """See Optimizer."""
        self._optimizer.zero_grad()

    def end(self) -> None:
        """See Optimizer."""
        for one in self._optimizer.chained_optimizers:
            one.optimizer.state.clear()

    def main_tensors(self) -> Mapping[str, Tensor]:
        """See Optimizer."""
        return {name: shard for name, (shard, _) in self._main.items()}

    def blank(self) -> Mapping[str, Tensor]:
        """See Optimizer."""
        if not self._config.bf16:
            return self._named
        return {name: torch.zeros(parameter.shape) for name, parameter in self._named.items()}

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """See Optimizer."""
        if not self._config.bf16:
            return
        for name, parameter in self._named.items():
            parameter.detach().copy_(weights[name])
            if name in self._main:
                shard, begin = self._main[name]
                shard.detach().copy_(weights[name].view(-1)[begin : begin + shard.numel()])

    def gather(self) -> Mapping[str, Tensor]:
        """See Optimizer. In host memory: the shards of all data-parallel ranks, one parameter after the other."""
        if not self._config.bf16:
            return self._named
        group, found = parallel_state.get_data_parallel_group(), {}
        for name, parameter in self._named.items():
            whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
            if name in self._main:
                shard, begin = self._main[name]
                whole[begin : begin + shard.numel()] = shard.detach()
            dist.all_reduce(whole, group=group)  # every element has one owner
            found[name] = whole.cpu().view(parameter.shape)
        return found

    def _shards(self) -> Iterator[tuple[str, tuple[Tensor, int]]]:
        """This rank's part of each parameter's main weights, and where it begins in the flat parameter."""
        names = {parameter: name for name, parameter in self._named.items()}
        for one in self._optimizer.chained_optimizers:
            groups = zip(one.model_float16_groups, one.shard_fp32_from_float16_groups, strict=True)
            for parameters, shards in groups:
                for parameter, shard in zip(parameters, shards, strict=True):
                    yield names[parameter], (shard, one._get_model_param_range_map(parameter)["param"].start)

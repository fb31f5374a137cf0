"""The model as Megatron-core builds it: parallel state, configuration, layer spec, and the forward and backward pass.

The same code serves GPUs and CPUs. `Machine` says which one a rank is on; what a CPU needs beyond that is in
`platform_cpu.py`. The paths for GPUs (Transformer Engine spec, DDP, distributed optimizer in `platform_gpu.py`)
follow Megatron-core's documented use (its `examples/run_simple_mcore_train_loop.py`); they could not be run on the
machine where this was written.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from twinpod.needs import Module, check_needs
from twinpod.records.model_shape import ModelShape
from twinpod.trainer import platform_cpu
from twinpod.trainer.convert.plan import naming_of, plan_parts
from twinpod.trainer.local_layers import local_block
from twinpod.trainer.logps import OutputLayer
from twinpod.trainer.optimizer import Optimizer
from twinpod.trainer.place import Place, Sizes
from twinpod.trainer.rope import config_of, inverse_frequencies

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a rank computes on: `cuda` or `cpu`, and the dtype of its parameters."""

    device: torch.device
    dtype: torch.dtype
    transformer_engine: bool = False  # layers of Transformer Engine; else Megatron's own, in plain torch

    @property
    def is_cpu(self) -> bool:
        """True where `platform_cpu` is in charge."""
        return bool(self.device.type == "cpu")


TRANSFORMER_ENGINE = Module(name="transformer_engine.pytorch", why="for the layers of a model on GPUs")


def start_ranks(
    *, local_rank: int, dtype: str, timeout_s: float = 600.0, layer_spec: str = "TransformerEngine"
) -> Machine:
    """Join the other ranks (torchrun's environment): NCCL where there is a GPU, else gloo and the CPU platform.

    `layer_spec`: TransformerEngine or Local, on a GPU; on a CPU it is Local.

    Torch's operators use the threads that OMP_NUM_THREADS says. Leave it at 1 on a shared machine: with more, OpenMP's
    waiting threads spin, and one busy neighbour made an iteration 15 times slower (measured, 2 cores, load 5).
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    if torch.cuda.is_available():
        fused = layer_spec == "TransformerEngine"
        if fused:
            check_needs(
                [TRANSFORMER_ENGINE],
                mend="build the trainer image on NVIDIA's PyTorch image (images/README.md), or set"
                " hybrid.trainer.layerSpec: Local, which is slower and holds whole attention matrices",
            )
        torch.cuda.set_device(local_rank)
        machine = Machine(device=torch.device("cuda", local_rank), dtype=DTYPES[dtype], transformer_engine=fused)
        dist.init_process_group("nccl", timeout=timeout, device_id=machine.device)
    else:
        platform_cpu.install()
        machine = Machine(device=platform_cpu.CPU, dtype=DTYPES[dtype])
        dist.init_process_group("gloo", timeout=timeout)
    return machine


# Data parallel last: torchrun numbers ranks pod by pod, so a copy of the model (tensor and pipeline parallel ranks,
# which talk most) lies inside a pod, and pods meet only to sum gradients.
ORDER = "tp-cp-ep-pp-dp"


def lay_out(sizes: Sizes, machine: Machine, *, seed: int = 0) -> Place:
    """Make Megatron's process groups for these sizes; what is left of the ranks is data parallel."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        order=ORDER,
        create_gloo_process_groups=not machine.is_cpu,
    )
    if not machine.is_cpu:
        model_parallel_cuda_manual_seed(seed)
    return current_place()


def current_place() -> Place:
    """This rank's coordinates, from Megatron's parallel state."""
    return Place(
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=parallel_state.get_pipeline_model_parallel_world_size(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
    )


def recompute_config(recompute: str, shape: ModelShape, machine: Machine) -> dict[str, Any]:
    """Megatron's fields for None, Selective or Full.

    Selective is the MLP, most of what a layer keeps. The attention's scores are there only where no fused attention
    is. Megatron cannot recompute an MLP with biases: its checkpoint takes the bias that the MLP returns for its own
    output (tensor_parallel/random.py), and the backward pass runs in a circle.
    """
    if recompute == "Full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if recompute == "Selective":
        modules = [
            *(["core_attn"] if shape.plain or not machine.transformer_engine else []),
            *([] if shape.plain else ["mlp"]),
        ]
        return {"recompute_granularity": "selective", "recompute_modules": modules}
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What a rank keeps of the forward pass for the backward pass; it changes memory and time, and no number."""

    recompute: str = "None"  # or Selective, or Full: made again in the backward pass
    sequence_parallel: bool = False  # between the attention and the MLP a tensor-parallel rank has its part of L


def transformer_config(
    shape: ModelShape, place: Place, machine: Machine, activations: Activations
) -> TransformerConfig:
    """Megatron's configuration of these families. Weights are not initialised here: `weights.py` fills every one."""
    kind, attention_factor = config_of(shape.rope)
    return kind(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        normalization=_normalization(shape),
        layernorm_epsilon=shape.norm_eps,
        qk_layernorm=shape.qk_norm,
        add_bias_linear=shape.plain,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=not shape.plain,
        activation_func=torch.nn.functional.relu if shape.plain else torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        tensor_model_parallel_size=place.tp_size,
        pipeline_model_parallel_size=place.pp_size,
        sequence_parallel=activations.sequence_parallel,
        pipeline_dtype=machine.dtype,
        params_dtype=machine.dtype,
        bf16=machine.dtype is torch.bfloat16,
        variable_seq_lengths=True,  # micro-batches are padded to their own longest sequence
        moe_token_dispatcher_type="alltoall",  # noqa: S106 # asked for by variable_seq_lengths, without experts too
        perform_initialization=False,
        **attention_factor,
        **recompute_config(activations.recompute, shape, machine),
        **(platform_cpu.CONFIG if machine.is_cpu else {}),
    )


def _normalization(shape: ModelShape) -> str:
    return "LayerNorm" if shape.plain else "RMSNorm"


class HiddenGPTModel(GPTModel):  # type: ignore[misc]  # megatron is not followed by mypy
    """Megatron's GPT that returns hidden states on the last stage too: the output layer is run by `logps.py`."""

    def _postprocess(self, hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        """Called by `forward` with the decoder's output (models/gpt/gpt_model.py)."""
        return hidden_states


def build_model(shape: ModelShape, place: Place, machine: Machine, activations: Activations) -> GPTModel:
    """This rank's part of the model, with undefined weights."""
    config = transformer_config(shape, place, machine, activations)
    if machine.transformer_engine:
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=shape.qk_norm)
    else:
        layers = shape.layers // place.pp_size
        spec = local_block(layers, qk_norm=shape.qk_norm, normalization=_normalization(shape))
    model = HiddenGPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=shape.padded_vocab(place.tp_size),
        max_sequence_length=shape.max_positions + shape.position_offset,
        pre_process=place.first_stage,
        post_process=place.last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="learned_absolute" if shape.plain else "rope",
        rotary_base=shape.rope.theta if shape.rope else 10_000.0,
    )
    if shape.rope and shape.rope.scaling:
        model.rotary_pos_emb.inv_freq = inverse_frequencies(shape.rope, shape.head_dim).to(machine.device)
    return model.to(device=machine.device, dtype=machine.dtype)


@dataclass(slots=True)
class RankModel:
    """The model part of one rank with everything that is needed to work on it. `model` is wrapped (DDP) on a GPU."""

    shape: ModelShape
    place: Place
    machine: Machine
    model: torch.nn.Module
    optimizer: Optimizer
    activations: Activations = field(default_factory=Activations)
    chunk_bytes: int | None = None  # of logits at a time; None: what suits the device

    @property
    def length_multiple(self) -> int:
        """Positions of a micro-batch must be a multiple of it: sequence parallel ranks hold equal parts."""
        return self.place.tp_size if self.activations.sequence_parallel else 1

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters by Megatron's name, without wrappers' prefixes (DDP and Float16Module each add `module.`)."""
        return {name.replace("module.", ""): parameter for name, parameter in self.model.named_parameters()}

    def loss_scale(self, microbatches: int) -> float:
        """Undoes what Megatron divides by: the schedule by micro-batches, its DDP by data-parallel ranks."""
        return float(microbatches if self.machine.is_cpu else microbatches * self.place.dp_size)


def build_rank(shape: ModelShape, place: Place, machine: Machine, activations: Activations | None = None) -> RankModel:
    """This rank's model, ready for `weights.py` to fill."""
    activations = activations or Activations()
    with on_machine(machine):
        model: torch.nn.Module = build_model(shape, place, machine, activations)
    mark_partitions(dict(model.named_parameters()), shape, place)
    optimizer: Optimizer
    if machine.is_cpu:
        optimizer = platform_cpu.CpuOptimizer(model)
    else:
        from twinpod.trainer import platform_gpu

        half = machine.dtype is torch.bfloat16
        model = platform_gpu.wrap(model, half=half)
        optimizer = platform_gpu.GpuOptimizer(model, half=half)
    return RankModel(
        shape=shape, place=place, machine=machine, model=model, optimizer=optimizer, activations=activations
    )


def hidden_of(rank: RankModel, model: torch.nn.Module, tokens_BL: Tensor, positions_BL: Tensor) -> Any:
    """The model part's output, hidden states `[L, B, H]` on every stage. Positions count from 0 in every family."""
    half = not rank.machine.is_cpu and rank.machine.dtype is torch.bfloat16
    keep = {"fp32_output": False} if half else {}  # or Float16Module makes them float32 on the last stage
    return model(tokens_BL, positions_BL + rank.shape.position_offset, None, **keep)


def output_layer(rank: RankModel) -> OutputLayer:
    """The output layer of a rank of the last stage, tied or its own."""
    model: Any = rank.model
    while hasattr(model, "module"):  # DDP and Float16Module
        model = model.module
    weight = model.shared_embedding_or_output_weight() if rank.shape.tied else model.output_layer.weight
    first = rank.place.tp_rank * len(weight)
    return OutputLayer(
        weight_WH=weight,
        first=first,
        rows=min(max(rank.shape.vocab - first, 0), len(weight)),
        group=parallel_state.get_tensor_model_parallel_group() if rank.place.tp_size > 1 else None,
        sequence_parallel=model.config.sequence_parallel,
        main_grad_WH=getattr(weight, "main_grad", None),
    )


def on_machine(machine: Machine) -> AbstractContextManager[object]:
    """Around every call into Megatron: its CUDA literals mean this machine's device."""
    return platform_cpu.CpuDevices() if machine.is_cpu else contextlib.nullcontext()


def mark_partitions(parameters: Mapping[str, Tensor], shape: ModelShape, place: Place) -> None:
    """Tell Megatron which parameters are tensor-parallel parts, so that gradient norms count replicated ones once.

    Megatron sets these attributes only while it initialises weights (tensor_parallel/layers.py), which we switch off.
    """
    for part in plan_parts(shape, place, naming_of(parameters)):
        parameter = parameters[part.source]
        if part.axis is not None and not getattr(parameter, "tensor_model_parallel", False):
            for name, value in (("tensor_model_parallel", True), ("partition_dim", part.axis), ("partition_stride", 1)):
                setattr(parameter, name, value)


ForwardStep = Callable[[Iterator[Any], torch.nn.Module], tuple[Tensor, Callable[[Tensor], tuple[Tensor, Any]]]]


class MicroBatches(Protocol):
    """How many there are, and one after the other: they need not all be in memory."""

    def __len__(self) -> int:
        """How many."""

    def __iter__(self) -> Iterator[Any]:
        """In order."""


def run_schedule(
    rank: RankModel,
    forward_step: ForwardStep,
    microbatches: MicroBatches,
    *,
    rows: int,
    length: int,
    forward_only: bool,
) -> None:
    """Megatron's schedule for this pipeline size over all micro-batches (pipeline_parallel/schedules.py). Collective.

    `rows` and `length` are the largest of any micro-batch (a hint only: shapes travel with the tensors).
    """
    with on_machine(rank.machine):
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(microbatches),
            model=[rank.model],
            num_microbatches=len(microbatches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
        )

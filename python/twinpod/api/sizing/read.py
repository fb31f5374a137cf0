"""From a job to what decides its memory. Pure but for `model.from`, whose config.json is read."""

from __future__ import annotations

from twinpod.api.sizing.nouns import Setup
from twinpod.api.types import RLJob
from twinpod.records.model_shape import ModelShape

PROMPT_TOKENS = 1024  # when nobody says how long prompts are


def setup_of(job: RLJob, shape: ModelShape, *, prompt_tokens: int = PROMPT_TOKENS) -> Setup:
    """`shape`: the model's; `prompt_tokens`: the longest prompt, of which the job says nothing."""
    spec = job.spec
    trainer, engine = spec.hybrid.trainer, spec.hybrid.inference
    algorithm = spec.algorithm
    return Setup(
        shape=shape,
        item=4 if spec.model.dtype == "float32" else 2,
        replicas=spec.hybrid.replicas,
        accelerators=spec.hybrid.accelerators,
        tensor=trainer.tensor_parallel,
        pipeline=trainer.pipeline_parallel,
        data=trainer.data_parallel,
        micro_tokens=algorithm.micro_batch_tokens,
        context=min(
            shape.max_positions,
            prompt_tokens + spec.rollout.max_tokens,
            algorithm.max_micro_batch_tokens or shape.max_positions,
        ),
        samples=algorithm.group_size * algorithm.groups_per_iteration,
        recompute=trainer.recompute,
        sequence_parallel=trainer.sequence_parallel,
        local_layers=trainer.layer_spec == "Local" or spec.hybrid.accelerators == 0,
        offload=trainer.offload or spec.hybrid.accelerators > 0,
        engine_tensor=engine.tensor_parallel,
        engine_data=engine.data_parallel,
        kv_tokens=engine.kv_tokens or 0,
        memory_fraction=float(engine.memory_fraction),
        max_running=engine.max_running,
    )

"""What a training phase takes from the master and gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One finished trajectory, ready for the loss."""

    group: int  # running number within the batch
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    behaviour_logps: tuple[float, ...]  # one a response token
    versions: tuple[int, ...]  # weight version of each response token
    advantage: float  # r_j - baseline of its group (paper 5)
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything that one iteration trains on; the same samples for every step of it."""

    iteration: int
    version: int  # current weight version: tokens with it are on-policy
    group_size: int  # k
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The algorithm's numbers (paper section 5)."""

    learning_rate: float  # the largest; see `trainer/schedule.py`
    betas: tuple[float, float]
    weight_decay: float
    eps: float
    tau: float
    temperature: (
        float  # the rollout's: log-probs are those of softmax(logits / temperature), as the engine reports them
    )
    mask: str  # "all" or "current"
    steps: int  # optimizer steps an iteration, each over all samples
    clip_grad: float
    micro_batch_tokens: int  # padded tokens a micro-batch and data-parallel rank
    warmup_iterations: int = 0
    decay: str = "constant"  # "constant", "linear" or "cosine"
    minimum_rate: float = 0.0  # that the decay ends at
    iterations: int = 0  # of the whole run; of interest to a decay


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStats:
    """What a training phase reports; means are over the steps unless said otherwise."""

    iteration: int
    loss: float
    grad_norm: float  # before clipping
    log_ratio: float  # mean over sequences of d_j at the last step, nats
    weights_gap: float  # mean |logp trainer - logp engine| on on-policy tokens, reference pass; nan without such tokens
    on_policy_tokens: int
    tokens: int  # response tokens in the loss, a step
    reference_seconds: float
    step_seconds: float  # all steps together

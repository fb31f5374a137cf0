"""What a training phase takes from the master and gives back."""

from __future__ import annotations

from dataclasses import dataclass

from twinpod.records.arrays import LogProbs, TokenIds

GIVEN = 0  # the "version" of tokens that no engine generated


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """Tokens in a row that have one origin."""

    version: int  # weight version that generated them; GIVEN: prompt, tool output, environment; never in the loss
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One finished trajectory, ready for the loss, with its place in the iteration."""

    trajectory_id: int
    group: int  # running number within the batch
    mini_batch: int  # from 0: which optimizer step of a pass over the batch it belongs to
    micro_batch: int  # from 0 within the mini-batch: which forward pass of its rank
    tokens: TokenIds  # the prompt and everything after it
    logps: LogProbs  # behaviour log-probs of the generated tokens, in their order
    runs: tuple[TokenRun, ...]  # cover `tokens`; the first one is given
    advantage: float  # r_j - baseline of its group (paper 5); an array a token will stand beside it, not in its place
    weight: float  # in the loss: 1/(groups of the mini-batch x samples of the group)
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """What one data-parallel rank trains on in one iteration: its own samples, and what it must know of the others."""

    iteration: int
    version: int  # current weight version: tokens with it are on-policy
    group_size: int  # k
    micro_batches: tuple[int, ...]  # of each mini-batch, the same on every rank: who has fewer adds blanks
    samples: tuple[Sample, ...]  # by mini-batch and micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """A sample without its tokens: what the master keeps of it."""

    trajectory_id: int
    group: int
    mini_batch: int
    tokens: int  # all of them
    generated: int
    advantage: float
    weight: float
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Everything that one iteration trains on, without the tokens; the same samples for every step of it."""

    iteration: int
    version: int
    group_size: int
    mini_batches: int  # 0 when there are no samples
    samples: tuple[PlannedSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLayout:
    """How the trainer divides a batch. Every rank of an iteration says the same."""

    ranks: int  # data-parallel size
    micro_batch_tokens: int  # padded tokens a micro-batch
    attention_tokens: int  # length at which attention costs as much as everything else together


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
    steps: int  # how often an iteration goes over all samples, with a step of the optimizer a mini-batch
    clip_grad: float
    micro_batch_tokens: int  # padded tokens a micro-batch and data-parallel rank
    max_micro_batch_tokens: int | None = None  # of the largest one, a long sample's; None: the model's context
    warmup_iterations: int = 0
    decay: str = "constant"  # "constant", "linear" or "cosine"
    minimum_rate: float = 0.0  # that the decay ends at
    iterations: int = 0  # of the whole run; of interest to a decay


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One step of the optimizer, over the samples of its mini-batch, under the weights before it."""

    loss: float
    grad_norm: float  # before clipping
    clipped: float  # share of the gradient that clipping took away; 0 when its norm was below the limit
    log_ratio: float  # mean over sequences of d_j, nats
    entropy: float  # mean over tokens in the loss, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStats:
    """What a training phase reports; means are over the steps unless said otherwise.

    Every number is finite, but for means of nothing, which are nan.
    """

    iteration: int
    learning_rate: float
    loss: float
    grad_norm: float  # before clipping
    clipped: float
    entropy: float
    log_ratio: float  # at the last step
    weights_gap: float  # mean |logp trainer - logp engine| on on-policy tokens, reference pass; nan without such tokens
    on_policy_tokens: int
    tokens: int  # response tokens in the loss, a step
    reference_seconds: float  # of a pass of its own; 0 where the first step's forward pass has the references
    step_seconds: float  # all steps together
    steps: tuple[StepStats, ...]

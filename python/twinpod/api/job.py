"""RLJob: one training run, as a person writes it.

Defaults stand here and nowhere else. A field marked `derived` takes its value from others when it is left out, so that
readers always find a number. What fields demand of each other stands in `rules.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from twinpod.api import names
from twinpod.api.base import (
    Decimal,
    EntryPointName,
    FilledText,
    Flag,
    FolderPath,
    ManagerName,
    Natural,
    ObjectName,
    Part,
    Positive,
    Quantity,
    Seed,
    Settings,
    Text,
    derived,
)
from twinpod.api.meta import Metadata
from twinpod.api.patch import PodPatch
from twinpod.api.pods import HybridSpec, ResourceList, Resources, engines_for
from twinpod.api.resource_rules import JOB_RULES
from twinpod.api.rules import broken
from twinpod.api.schedule import LearningRateSchedule
from twinpod.api.sizing.shared import derived_size
from twinpod.api.status import JobStatus


def _fill(part: Part, **values: Any) -> None:
    """Set derived fields of a part that is still being built."""
    for name, value in values.items():
        object.__setattr__(part, name, value)


class Architecture(Part):
    """Shape of a model that begins with random weights, in Hugging Face terms."""

    architecture: Literal["qwen2", "qwen3", "llama", "opt"]
    """Model family; decides the names of the weights and how Megatron and SGLang build it.

    opt has learned positions; the others have rotary ones.
    """
    hidden_size: Positive
    """Width of the residual stream (hidden_size)."""
    layers: Annotated[int, Field(strict=True, ge=1, le=1024)]
    """Transformer layers (num_hidden_layers)."""
    heads: Annotated[int, Field(strict=True, ge=1, le=1024)]
    """Attention heads of a layer (num_attention_heads)."""
    kv_heads: Annotated[int, Field(strict=True, ge=1, le=1024)] = derived("heads")
    """Key-value heads of grouped-query attention; as many as heads when left out (and always with opt)."""
    head_dim: Positive = derived("hiddenSize / heads")
    """Width of a head (head_dim); even with rotary positions."""
    ffn_size: Positive
    """Width of the feed-forward layer (intermediate_size; ffn_dim of opt)."""
    max_positions: Positive
    """Most tokens of prompt and answer together."""
    rope_theta: Decimal = "10000"
    """Base of the rotary positions; opt has none and ignores it."""
    tie_embeddings: Flag = False
    """Whether the output layer shares the weights of the input embeddings (tie_word_embeddings)."""

    @model_validator(mode="after")
    def _derive(self) -> Self:
        if not self.kv_heads:
            _fill(self, kv_heads=self.heads)
        if not self.head_dim and self.hidden_size % self.heads == 0:
            _fill(self, head_dim=self.hidden_size // self.heads)
        return self


class TokenizerSpec(Part):
    """Exactly one of `characters` (one token each, ids from 2 in this order) and `path` (a Hugging Face folder)."""

    characters: Annotated[str, Field(strict=True, min_length=1, max_length=4096)] | None = None
    """The vocabulary as one text, no character twice; ids 0 and 1 are padding and the end of a text."""
    path: FolderPath | None = None
    """Hugging Face folder with tokenizer.json, as the containers see it."""

    @field_validator("characters")
    @classmethod
    def _differ(cls, value: str | None) -> str | None:
        if value is not None and len(set(value)) != len(value):
            twice = next(character for character in value if value.count(character) > 1)
            raise PydanticCustomError("twice", f"holds {twice!r} twice; each character is one token")
        return value


class SnapshotSource(Part):
    """A folder on the snapshots volume of another job; it is mounted read-only in every pod."""

    claim: ObjectName
    """Volume claim in the same namespace, as `kubectl get pvc -l twinpod.dev/job=NAME` lists it."""
    folder: Annotated[str, Field(strict=True, min_length=1, max_length=1024, pattern=r"^[^/].*$")] = "export"
    """Folder on the volume: the export that a finished job leaves, or a snapshot, which needs `config` beside it."""

    @property
    def path(self) -> str:
        """The folder as the containers see it."""
        return f"{names.SOURCE_FOLDER}/{self.folder}"


class ModelSpec(Part):
    """What the weights start from: `config` (random weights), `from` or `fromSnapshot`."""

    config: Architecture | None = None
    from_: FolderPath | None = Field(default=None, alias="from")
    """Folder with config.json, safetensors and tokenizer, as the containers see it."""
    from_snapshot: SnapshotSource | None = None
    """What another job left; only the weights are taken over, the run begins at its first iteration."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in trainer, engine and export."""
    tokenizer: TokenizerSpec | None = None
    """Needed with `config`; otherwise the folder's own tokenizer when left out."""

    @property
    def folder(self) -> str | None:
        """The Hugging Face folder that the model comes from; None when `config` says its shape."""
        if self.config is not None:
            return None
        return self.from_ or (self.from_snapshot.path if self.from_snapshot is not None else None)


class EntryPointSpec(Part):
    """A Python function of the image: `package.module:function`, called with `settings` as keyword arguments."""

    target: EntryPointName
    """The function, as package.module:function, importable in the master's image (locally also beside the manifest)."""
    settings: Settings = Field(default_factory=dict)
    """Keyword arguments of the function."""


class JsonLinesSpec(Part):
    """A file with one JSON object a line: prompt, answer, difficulty (0 to 1, optional)."""

    path: FolderPath
    """The file, as the master's container sees it. Between two starts lines may be added at its end, none changed."""


class ReasoningGymSpec(Part):
    """A data set of the package reasoning-gym, with its own settings."""

    name: FilledText
    """Name of the data set in reasoning-gym, such as spell_backward."""
    settings: Settings = Field(default_factory=dict)
    """Keyword arguments of the data set, as reasoning-gym documents them."""
    size: Positive = 10_000
    """Training prompts, when dataset.size is left out."""


class DatasetSpec(Part):
    """Where prompts come from: exactly one of `entryPoint`, `jsonLines`, `reasoningGym`."""

    entry_point: EntryPointSpec | None = None
    json_lines: JsonLinesSpec | None = None
    reasoning_gym: ReasoningGymSpec | None = None
    template: Text = "{prompt}"
    """Text around each prompt; must contain {prompt}."""
    add_special_tokens: Flag = True
    """Whether a prompt begins with what the tokenizer's post-processor puts before a text, such as a BOS, once.

    A BOS that the template writes itself is not doubled; what is put behind a text, such as an EOS, is left out.
    """
    size: Positive | None = None
    """Training prompts that are taken; when left out all of a file, 10000 of a function, reasoningGym.size of that."""
    held_out: Natural = 200
    """Prompts kept apart for the evaluation at the end; never trained on."""


class AlgorithmSpec(Part):
    """Online policy mirror descent (paper section 5)."""

    group_size: Annotated[int, Field(strict=True, ge=2, le=4096)] = 16
    """Samples a prompt (k)."""
    groups_per_iteration: Positive
    """Finished groups that an iteration trains on."""
    steps_per_iteration: Positive = 2
    """How often an iteration goes over all its samples; with miniBatches 1 that many optimizer steps."""
    mini_batches: Positive = 1
    """Disjoint parts that an iteration's groups are cut into, one optimizer step each, in every going over."""
    learning_rate: Decimal
    """Largest step size of AdamW, as a decimal in quotes."""
    learning_rate_schedule: LearningRateSchedule = LearningRateSchedule()
    betas: Annotated[tuple[Decimal, ...], Field(min_length=2, max_length=2)] = ("0.9", "0.95")
    """Decay rates of AdamW's two moments, each below 1."""
    eps: Decimal = "1e-8"
    """What AdamW adds to the denominator."""
    weight_decay: Decimal = "0"
    """AdamW's decay of weights a step, times the learning rate."""
    tau: Decimal = "0.1"
    """Weight of the square of the sequence's log-ratio to the reference."""
    baseline: Literal["mean", "logMeanExp"] = "mean"
    """What is taken from the rewards of a group: their mean, or tau * log(mean(exp(reward / tau)))."""
    mask: Literal["all", "current"] = "all"
    """Tokens in the loss: all of a trajectory, or only those of the current weight version."""
    clip_grad: Decimal = "1.0"
    """Largest norm of the whole gradient; larger ones are scaled down to it."""
    micro_batch_tokens: Positive = 4096
    """Padded tokens a micro-batch and data-parallel rank. A longer sample is a micro-batch of its own."""
    max_micro_batch_tokens: Positive | None = Field(
        default=None, json_schema_extra={"derived": "the model's context, or microBatchTokens where that is more"}
    )
    """Padded tokens of the largest micro-batch, which bounds the trainer's memory. A longer sample is refused."""
    weights_gap_limit: Decimal = derived('"1e-3" in float32 without accelerators, else "1e-1"', "")
    """Largest mean |logp trainer - logp engine| on on-policy tokens before the iteration fails."""


class RepeatSpec(Part):
    """Repeat detection: an n-gram of `ngram` tokens that comes `count` times in a row ends an answer."""

    ngram: Natural = 0
    """Length of the n-gram in tokens; 0 turns the detection off."""
    count: Natural = 0
    """Times in a row that end the answer, 2 or more; 0 when ngram is 0."""
    penalty: Decimal = "0"
    """Taken from the reward of an answer that was stopped for repeating."""


class RolloutSpec(Part):
    """Limits of generation and how tokens are drawn."""

    max_tokens: Positive
    """Most new tokens a trajectory in all."""
    segment_tokens: Positive = derived("maxTokens")
    """Most new tokens a trajectory in one iteration; the rest follows in later ones."""
    groups_in_flight: Positive = derived("algorithm.groupsPerIteration")
    """Groups that may be open at once."""
    temperature: Decimal = "1"
    """Temperature that tokens are drawn with, above 0; the trainer's log-probabilities are taken at the same."""
    top_p: Decimal = "1"
    """Share of the probability that tokens are drawn from, above 0 and at most 1; 1 draws from all."""
    max_segment_age: Positive = 8
    """Iterations after which an unfinished trajectory is dropped and counted."""
    repeat: RepeatSpec = RepeatSpec()

    @model_validator(mode="after")
    def _derive(self) -> Self:
        if not self.segment_tokens:
            _fill(self, segment_tokens=self.max_tokens)
        return self


class RewardSpec(Part):
    """How a finished answer is scored."""

    kind: Literal["prefix", "exact", "dataset", "entryPoint"]
    """Correct prefix's share, exact match, the data set's own score, or a function."""
    target: EntryPointName | None = None
    """The function, for kind entryPoint."""
    timeout_seconds: Positive = 60
    """Seconds for an answer with kinds dataset and entryPoint; one that takes longer has no verdict and is left out."""
    processes: Annotated[int, Field(strict=True, ge=1, le=256)] = 4
    """Answers that kinds dataset and entryPoint judge at once, each in a process of its own in the master's pod."""


class StateVolume(Part):
    """Volume of the master's database (ReadWriteOnce): a new claim of `size`, or `existingClaim`."""

    size: Quantity = "1Gi"
    """Size of the new claim; unused with existingClaim."""
    existing_claim: ObjectName | None = None
    """A claim in the job's namespace to use instead of a new one; it is never deleted."""
    storage_class_name: ObjectName | None = None
    """Storage class of the new claim; the platform's, or else the cluster's default when left out."""


class SnapshotsVolume(Part):
    """Volume of snapshots and exports (ReadWriteMany): a new claim of `size`, or `existingClaim`."""

    size: Quantity = "1Gi"
    """Size of the new claim; unused with existingClaim. Each snapshot holds weights and optimizer."""
    existing_claim: ObjectName | None = None
    """A claim in the job's namespace to use instead of a new one; it is never deleted."""
    storage_class_name: ObjectName | None = None
    """Storage class of the new claim; the platform's, or else the cluster's default when left out."""
    url: FilledText | None = None
    """Not supported yet, and refused: use `size` or `existingClaim`."""


class StorageSpec(Part):
    """What outlives the pods."""

    snapshot_every: Positive = 10
    """Iterations between durable snapshots; a resume goes back to the newest."""
    keep_iterations: Positive = derived("the larger of 50 and twice snapshotEvery")
    """Iterations whose trajectories stay in the master's database; older ones move to Parquet files on the snapshots
    volume."""
    state: StateVolume = StateVolume()
    snapshots: SnapshotsVolume = SnapshotsVolume()
    when_deleted: Literal["Retain", "Delete"] = "Retain"
    """What becomes of the volumes that were made for the job when it is deleted."""


class FailurePolicy(Part):
    """When to try again and when to give up."""

    max_restarts: Natural = 3
    """Restarts of the job's pods for faults of the job itself before it is Failed."""
    max_infrastructure_restarts: Natural = 20
    """Restarts for lost nodes and evictions before it is Failed; a preemption by a queue costs nothing."""
    max_scheduling_retries: Natural = 100
    """Attempts that may be taken back at the scheduling deadline before it is Failed."""
    scheduling_deadline_seconds: Positive = 600
    """Seconds that an attempt's pods may wait for nodes before all are taken back and tried again later."""
    start_deadline_seconds: Positive = 1800
    """Seconds that scheduled pods may take to come up (images, volumes) before they are restarted."""
    backoff_seconds: Positive = 10
    """Seconds before the first restart; doubled with each that follows."""
    max_backoff_seconds: Positive = 300
    """Most seconds before a restart."""


class MasterSpec(Part):
    """The master pod: samples, dispatches, scores, stores, batches."""

    resources: Resources = Resources(requests=ResourceList(cpu="250m", memory="512Mi"))
    pod_patch: PodPatch | None = None
    """Strategic merge patch of the pod, for what no field covers: `{metadata: ..., spec: ...}`."""


class JobSpec(Part):
    """One training run."""

    iterations: Positive
    """Iterations of the whole run: each generates, scores and trains once."""
    seed: Seed = 0
    """Seed of the random weights, the data set, the order of prompts and, where engines run on CPUs, the draws.

    On accelerators SGLang draws by itself: the same seed gives other answers there.
    """
    suspend: Flag = False
    """Stop the pods and keep the state; the one switch that queueing systems use."""
    managed_by: ManagerName | None = None
    """Controller that looks after the job; the operator does when left out or twinpod.dev/operator."""
    ttl_seconds_after_finished: Natural | None = None
    """Seconds after its end when the job is deleted; never when left out. Volumes obey storage.whenDeleted."""
    active_deadline_seconds: Positive | None = None
    """Seconds from the first start after which a job that has not ended is Failed; time suspended does not count."""
    priority_class_name: ObjectName | None = None
    """Priority class of the job's pods."""
    model: ModelSpec
    dataset: DatasetSpec
    algorithm: AlgorithmSpec
    rollout: RolloutSpec
    reward: RewardSpec
    master: MasterSpec = MasterSpec()
    hybrid: HybridSpec = HybridSpec()
    storage: StorageSpec = StorageSpec()
    failure_policy: FailurePolicy = FailurePolicy()

    @model_validator(mode="after")
    def _derive(self) -> Self:
        algorithm, rollout, hybrid = self.algorithm, self.rollout, self.hybrid
        if not rollout.groups_in_flight:
            rollout = rollout.model_copy(update={"groups_in_flight": algorithm.groups_per_iteration})
        if not algorithm.weights_gap_limit:
            strict = self.model.dtype == "float32" and hybrid.accelerators == 0
            algorithm = algorithm.model_copy(update={"weights_gap_limit": "1e-3" if strict else "1e-1"})
        hybrid = hybrid.model_copy(update={"inference": engines_for(hybrid.inference, hybrid.accelerators)})
        if hybrid.shared_memory is None:
            hybrid = hybrid.model_copy(update={"shared_memory": derived_size(self.model, hybrid)})
        if not hybrid.inference.max_running:
            wanted = min(512, rollout.groups_in_flight * algorithm.group_size)
            engine = hybrid.inference.model_copy(update={"max_running": wanted})
            hybrid = hybrid.model_copy(update={"inference": engine})
        storage = self.storage
        if not storage.keep_iterations:
            storage = storage.model_copy(update={"keep_iterations": max(50, 2 * storage.snapshot_every)})
        _fill(self, algorithm=algorithm, rollout=rollout, hybrid=hybrid, storage=storage)
        return self


class RLJob(Part):
    """One training run of a language model by reinforcement learning."""

    api_version: Literal["twinpod.dev/v1alpha1"]
    kind: Literal["RLJob"]
    metadata: Metadata
    spec: JobSpec
    status: JobStatus | None = None

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        if problems := broken(JOB_RULES, self.as_manifest()):
            raise PydanticCustomError("rules", "{lines}", {"lines": "\n".join(problems), "problems": problems})
        return self

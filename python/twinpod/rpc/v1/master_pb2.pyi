from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PullRequest(_message.Message):
    __slots__ = ("worker", "epoch", "version", "capacity", "wait_s", "holding", "tokens_generated")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    version: int
    capacity: int
    wait_s: float
    holding: _containers.RepeatedScalarFieldContainer[str]
    tokens_generated: int
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., capacity: _Optional[int] = ..., wait_s: _Optional[float] = ..., holding: _Optional[_Iterable[str]] = ..., tokens_generated: _Optional[int] = ...) -> None: ...

class WorkBatch(_message.Message):
    __slots__ = ("epoch", "iteration", "version", "cut", "items")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    iteration: int
    version: int
    cut: bool
    items: _containers.RepeatedCompositeFieldContainer[WorkItem]
    def __init__(self, epoch: _Optional[int] = ..., iteration: _Optional[int] = ..., version: _Optional[int] = ..., cut: _Optional[bool] = ..., items: _Optional[_Iterable[_Union[WorkItem, _Mapping]]] = ...) -> None: ...

class WorkItem(_message.Message):
    __slots__ = ("item_id", "group_id", "version", "prompt_tokens", "trajectories", "sampling", "seed")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORIES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    group_id: int
    version: int
    prompt_tokens: bytes
    trajectories: _containers.RepeatedCompositeFieldContainer[Resumption]
    sampling: Sampling
    seed: int
    def __init__(self, item_id: _Optional[str] = ..., group_id: _Optional[int] = ..., version: _Optional[int] = ..., prompt_tokens: _Optional[bytes] = ..., trajectories: _Optional[_Iterable[_Union[Resumption, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class Resumption(_message.Message):
    __slots__ = ("trajectory_id", "index", "tokens")
    TRAJECTORY_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    trajectory_id: int
    index: int
    tokens: bytes
    def __init__(self, trajectory_id: _Optional[int] = ..., index: _Optional[int] = ..., tokens: _Optional[bytes] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "segment_tokens", "max_tokens", "stop_token_ids", "repeat_ngram", "repeat_count")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    REPEAT_NGRAM_FIELD_NUMBER: _ClassVar[int]
    REPEAT_COUNT_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    segment_tokens: int
    max_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    repeat_ngram: int
    repeat_count: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., segment_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., repeat_ngram: _Optional[int] = ..., repeat_count: _Optional[int] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("trajectory_id", "index", "version", "tokens", "logps", "stop", "pod", "kind")
    TRAJECTORY_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    trajectory_id: int
    index: int
    version: int
    tokens: bytes
    logps: bytes
    stop: str
    pod: str
    kind: str
    def __init__(self, trajectory_id: _Optional[int] = ..., index: _Optional[int] = ..., version: _Optional[int] = ..., tokens: _Optional[bytes] = ..., logps: _Optional[bytes] = ..., stop: _Optional[str] = ..., pod: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class WorkResult(_message.Message):
    __slots__ = ("item_id", "worker", "segments", "failed", "refused_versions", "seconds", "trajectories")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORIES_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    worker: str
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    failed: str
    refused_versions: int
    seconds: float
    trajectories: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, item_id: _Optional[str] = ..., worker: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., failed: _Optional[str] = ..., refused_versions: _Optional[int] = ..., seconds: _Optional[float] = ..., trajectories: _Optional[_Iterable[int]] = ...) -> None: ...

class ReturnRequest(_message.Message):
    __slots__ = ("epoch", "results")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    results: _containers.RepeatedCompositeFieldContainer[WorkResult]
    def __init__(self, epoch: _Optional[int] = ..., results: _Optional[_Iterable[_Union[WorkResult, _Mapping]]] = ...) -> None: ...

class ReturnReply(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: int
    def __init__(self, stored: _Optional[int] = ...) -> None: ...

class BatchRequest(_message.Message):
    __slots__ = ("epoch", "iteration", "rank", "ranks", "micro_batch_tokens", "attention_tokens")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    iteration: int
    rank: int
    ranks: int
    micro_batch_tokens: int
    attention_tokens: int
    def __init__(self, epoch: _Optional[int] = ..., iteration: _Optional[int] = ..., rank: _Optional[int] = ..., ranks: _Optional[int] = ..., micro_batch_tokens: _Optional[int] = ..., attention_tokens: _Optional[int] = ...) -> None: ...

class BatchPart(_message.Message):
    __slots__ = ("head", "samples", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: BatchHead
    samples: _containers.RepeatedCompositeFieldContainer[BatchSample]
    data: bytes
    def __init__(self, head: _Optional[_Union[BatchHead, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[BatchSample, _Mapping]]] = ..., data: _Optional[bytes] = ...) -> None: ...

class BatchHead(_message.Message):
    __slots__ = ("iteration", "version", "group_size", "micro_batches", "samples")
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    iteration: int
    version: int
    group_size: int
    micro_batches: _containers.RepeatedScalarFieldContainer[int]
    samples: int
    def __init__(self, iteration: _Optional[int] = ..., version: _Optional[int] = ..., group_size: _Optional[int] = ..., micro_batches: _Optional[_Iterable[int]] = ..., samples: _Optional[int] = ...) -> None: ...

class BatchSample(_message.Message):
    __slots__ = ("trajectory_id", "group", "mini_batch", "micro_batch", "advantage", "weight", "reward", "runs")
    TRAJECTORY_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MINI_BATCH_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    ADVANTAGE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    trajectory_id: int
    group: int
    mini_batch: int
    micro_batch: int
    advantage: float
    weight: float
    reward: float
    runs: _containers.RepeatedCompositeFieldContainer[TokenRun]
    def __init__(self, trajectory_id: _Optional[int] = ..., group: _Optional[int] = ..., mini_batch: _Optional[int] = ..., micro_batch: _Optional[int] = ..., advantage: _Optional[float] = ..., weight: _Optional[float] = ..., reward: _Optional[float] = ..., runs: _Optional[_Iterable[_Union[TokenRun, _Mapping]]] = ...) -> None: ...

class TokenRun(_message.Message):
    __slots__ = ("version", "count")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    version: int
    count: int
    def __init__(self, version: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

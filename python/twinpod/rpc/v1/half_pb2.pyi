from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("key", "verb", "epoch", "iteration", "version", "argument", "deadline_s")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    key: str
    verb: str
    epoch: int
    iteration: int
    version: int
    argument: str
    deadline_s: float
    def __init__(self, key: _Optional[str] = ..., verb: _Optional[str] = ..., epoch: _Optional[int] = ..., iteration: _Optional[int] = ..., version: _Optional[int] = ..., argument: _Optional[str] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("key", "error", "retryable", "seconds", "detail")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    key: str
    error: str
    retryable: bool
    seconds: float
    detail: str
    def __init__(self, key: _Optional[str] = ..., error: _Optional[str] = ..., retryable: _Optional[bool] = ..., seconds: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HalfStatus(_message.Message):
    __slots__ = ("pod", "kind", "address", "state", "version", "epoch", "attempt", "message", "pod_attempt")
    POD_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    POD_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    pod: str
    kind: str
    address: str
    state: str
    version: int
    epoch: int
    attempt: int
    message: str
    pod_attempt: int
    def __init__(self, pod: _Optional[str] = ..., kind: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., version: _Optional[int] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., message: _Optional[str] = ..., pod_attempt: _Optional[int] = ...) -> None: ...

class NextCommandRequest(_message.Message):
    __slots__ = ("attempt", "wait_s", "ready")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    wait_s: float
    ready: bool
    def __init__(self, attempt: _Optional[int] = ..., wait_s: _Optional[float] = ..., ready: _Optional[bool] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

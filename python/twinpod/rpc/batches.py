"""One rank's samples as a stream of bounded messages, and back (`Master.FetchBatch`). No I/O.

The data of all samples is one row of bytes: a sample's token ids (int32), then its log-probs (float32), then the next
sample's. Parts cut it anywhere, so that no part is larger than `MESSAGE_BYTES` and some numbers, however long a sample
is; how many bytes a sample has follows from its runs. The maker holds one sample at a time, the taker its own samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import numpy as np

from twinpod.errors import ProtocolError
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.training import GIVEN, DataLayout, RankBatch, Sample, TokenRun
from twinpod.rpc.limits import MESSAGE_BYTES
from twinpod.rpc.v1 import master_pb2

WHERE = "FetchBatch"


def layout_from_pb(request: master_pb2.BatchRequest) -> DataLayout:
    """How the asking trainer divides the batch."""
    return DataLayout(
        ranks=request.ranks,
        micro_batch_tokens=request.micro_batch_tokens,
        attention_tokens=request.attention_tokens,
    )


def request_to_pb(epoch: int, iteration: int, rank: int, layout: DataLayout) -> master_pb2.BatchRequest:
    """One rank's request."""
    return master_pb2.BatchRequest(
        epoch=epoch,
        iteration=iteration,
        rank=rank,
        ranks=layout.ranks,
        micro_batch_tokens=layout.micro_batch_tokens,
        attention_tokens=layout.attention_tokens,
    )


def fetch_method(channel: grpc.Channel) -> Any:
    """`Master.FetchBatch` of a channel, whose answers stay the bytes that came: `BatchReader` reads them, once."""
    return channel.unary_stream(
        "/twinpod.rpc.v1.Master/FetchBatch",
        request_serializer=master_pb2.BatchRequest.SerializeToString,
        response_deserializer=bytes,
    )


def batch_parts(
    head: RankBatch, samples: Iterable[Sample], count: int, most: int = MESSAGE_BYTES
) -> Iterator[master_pb2.BatchPart]:
    """The stream of a rank's batch. `head`: the batch without samples; `count`: how many `samples` gives."""
    part = master_pb2.BatchPart(
        head=master_pb2.BatchHead(
            iteration=head.iteration,
            version=head.version,
            group_size=head.group_size,
            micro_batches=head.micro_batches,
            samples=count,
        )
    )
    pieces: list[memoryview] = []
    room = most - part.ByteSize()

    def full() -> master_pb2.BatchPart:
        part.data = b"".join(pieces)
        return part

    for sample in samples:
        note = _sample_to_pb(sample)
        size = note.ByteSize() + _NOTE_FRAME
        if size > room:
            yield full()
            part, pieces, room = master_pb2.BatchPart(), [], most
        part.samples.append(note)
        room -= size
        for vector in (sample.tokens, sample.logps):
            data = vector.array.view(np.uint8).data
            while data:
                if room <= 0:
                    yield full()
                    part, pieces, room = master_pb2.BatchPart(), [], most
                pieces.append(data[:room])
                room -= len(pieces[-1])
                data = data[len(pieces[-1]) :]
    yield full()


class BatchReader:
    """Parts in, in their order; a RankBatch out. Life: `take` for each part, then `batch` once.

    ProtocolError for parts that do not make one batch.
    """

    def __init__(self) -> None:
        self._head: master_pb2.BatchHead | None = None
        self._notes: deque[master_pb2.BatchSample] = deque()  # of samples whose data is not here yet
        self._samples: list[Sample] = []
        self._buffer = np.empty(0, dtype=np.uint8)  # of the sample under way
        self._filled = 0

    def take(self, message: bytes) -> None:
        """One serialised BatchPart."""
        part = master_pb2.BatchPart.FromString(message)
        if part.HasField("head") != (self._head is None):
            raise ProtocolError("the first part has a head, and no other", where=WHERE)
        if part.HasField("head"):
            self._head = part.head
        self._notes.extend(part.samples)
        data = np.frombuffer(part.data, dtype=np.uint8)
        while data.size:
            if self._filled == 0:
                self._begin(data.size)
            piece = data[: self._buffer.size - self._filled]
            self._buffer[self._filled : self._filled + piece.size] = piece
            self._filled += piece.size
            data = data[piece.size :]
            if self._filled == self._buffer.size:
                self._end()

    def batch(self) -> RankBatch:
        """What came."""
        wanted = self._head.samples if self._head else -1
        if self._head is None or self._notes or len(self._samples) != wanted:
            raise ProtocolError(f"the stream ended after {len(self._samples)} of {wanted} samples", where=WHERE)
        return RankBatch(
            iteration=self._head.iteration,
            version=self._head.version,
            group_size=self._head.group_size,
            micro_batches=tuple(self._head.micro_batches),
            samples=tuple(self._samples),
        )

    def _begin(self, left: int) -> None:
        size = _data_bytes(self._notes[0]) if self._notes else 0
        if size == 0:
            raise ProtocolError(f"{left} bytes belong to no sample", where=WHERE)
        self._buffer = np.empty(size, dtype=np.uint8)

    def _end(self) -> None:
        note = self._notes.popleft()
        split = 4 * sum(run.count for run in note.runs)
        self._samples.append(
            Sample(
                trajectory_id=note.trajectory_id,
                group=note.group,
                mini_batch=note.mini_batch,
                micro_batch=note.micro_batch,
                tokens=TokenIds(self._buffer[:split].view("<i4")),
                logps=LogProbs(self._buffer[split:].view("<f4")),
                runs=tuple(TokenRun(version=run.version, count=run.count) for run in note.runs),
                advantage=note.advantage,
                weight=note.weight,
                reward=note.reward,
            )
        )
        self._filled = 0


def _data_bytes(note: master_pb2.BatchSample) -> int:
    return sum(4 * run.count * (1 if run.version == GIVEN else 2) for run in note.runs)


_NOTE_FRAME = 8  # tag and length of a sample's note within its part


def _sample_to_pb(sample: Sample) -> master_pb2.BatchSample:
    if len(sample.tokens) != sum(run.count for run in sample.runs) or len(sample.logps) != sum(
        run.count for run in sample.runs if run.version != GIVEN
    ):
        raise ProtocolError(
            f"trajectory {sample.trajectory_id} has {len(sample.tokens)} tokens and {len(sample.logps)} log-probs,"
            f" which its runs {sample.runs} do not add up to",
            where=WHERE,
        )
    return master_pb2.BatchSample(
        trajectory_id=sample.trajectory_id,
        group=sample.group,
        mini_batch=sample.mini_batch,
        micro_batch=sample.micro_batch,
        advantage=sample.advantage,
        weight=sample.weight,
        reward=sample.reward,
        runs=[master_pb2.TokenRun(version=run.version, count=run.count) for run in sample.runs],
    )

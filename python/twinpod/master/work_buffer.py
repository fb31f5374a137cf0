"""The work buffer of one rollout phase: who generates what, what is outstanding, and when the phase is over. Pure
(design 8.1).

Words. A *slot* holds one open group; there are `in_flight` of them. An *attempt* is one trajectory of a slot within
this phase; it may spend `segment_tokens` here. An *item* is what a worker takes: attempts of one group that have the
same length and the same tokens left, so that a fresh group is one item with k resumptions and the engine answers it
in one request. Its attempts come back one by one, as they end.

Promises: an attempt is in at most one outstanding item; an attempt that failed, was lost or was cut is ready again;
saved groups go before fresh ones, older before younger; nothing is handed out once the phase is closing; what one
`take` hands out has at most `answer_bytes`, but for a single attempt that is larger.

Every method costs what it changes, not what there is: slots with ready attempts stand in a queue, and how many are
ready or able is counted as they change. `_changed` is the one place that counts.

Fresh groups. When `in_flight` is above `wanted`, every freed slot is refilled at once until `wanted` groups are
finished: what is left of them goes on under newer weights. When it is not, only as many are begun as are still
needed: with answers that fit into a phase nothing is begun in vain, and every token is on-policy.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Group, Prompt, Resumption, SamplingSettings, Segment, Stop, WorkItem, WorkResult
from twinpod.rpc.limits import MESSAGE_BYTES, item_bytes, resumption_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The numbers of a phase."""

    wanted: int  # finished groups that end the phase
    in_flight: int  # slots
    sampling: SamplingSettings
    seed: int
    most_failures: int = 8  # of one attempt; then its group rests until the next phase
    answer_bytes: int = MESSAGE_BYTES  # handed out by one `take`
    begins: bool = True  # fresh groups may be begun; an evaluation has all of its own from the start


@dataclass(slots=True)
class Attempt:
    """One trajectory within this phase."""

    trajectory_id: int
    tokens: TokenIds  # what to go on with; empty once it is terminal
    index: int  # of the next segment
    spent: int  # tokens generated in this phase
    terminal: bool
    over: bool = False  # the engine said BUDGET: nothing more in this phase
    item: str = ""  # outstanding item; empty when none
    failures: int = 0


_Key = tuple[bool, int, int]


@dataclass(slots=True)
class Slot:
    """One group in flight. The last four are what the buffer has counted of it."""

    group_id: int
    prompt: Prompt
    born: int
    attempts: tuple[Attempt, ...]
    ready: int = 0  # attempts that may be handed out
    able: bool = False  # may still finish in this phase
    resting: bool = False  # an attempt failed too often
    queued: _Key | None = None  # its place in the queue

    @property
    def finished(self) -> bool:
        """All attempts are terminal."""
        return all(attempt.terminal for attempt in self.attempts)


@dataclass(slots=True, kw_only=True)
class Outstanding:
    """An item that a worker holds."""

    item_id: str
    group_id: int
    worker: str
    since: float
    open: set[int]  # trajectories that are to come back


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A trajectory that became terminal: what a judge needs."""

    trajectory_id: int
    prompt: Prompt
    tokens: TokenIds
    stop: Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a returned result changed."""

    ended: tuple[Ended, ...]  # trajectories that became terminal
    finished: tuple[int, ...]  # groups whose last trajectory became terminal
    tokens: int


@dataclass(slots=True)
class WorkBuffer:
    """State of one phase. Single owner (the dispatcher); methods take and return values, `now` in seconds."""

    rules: Rules
    epoch: int
    iteration: int
    version: int
    finished: int = 0  # groups finished and not trained, those of earlier phases included
    closing: bool = False
    slots: dict[int, Slot] = field(default_factory=dict)
    outstanding: dict[str, Outstanding] = field(default_factory=dict)
    workers: dict[str, float] = field(default_factory=dict)  # when each was last heard
    tokens: int = 0  # generated in this phase
    failures: int = 0  # attempts given back as failed
    last_failure: str = ""  # why the newest of them failed
    number: int = 0  # of the next item
    ready: int = 0  # attempts that may be handed out
    able: int = 0  # slots that may still finish in this phase
    _attempts: dict[int, tuple[Slot, Attempt]] = field(default_factory=dict)  # of the slots, by trajectory
    _held: dict[str, dict[str, Outstanding]] = field(default_factory=dict)  # by worker and item
    _queue: list[_Key] = field(default_factory=list)  # a heap; an entry that is not its slot's `queued` is void

    def admit(self, group: Group, spent: Mapping[int, int]) -> None:
        """Put a group into a slot.

        `spent`: tokens that a trajectory has already generated in this iteration (after a restart).
        """
        attempts = tuple(
            Attempt(
                trajectory_id=trajectory.trajectory_id,
                tokens=TokenIds() if trajectory.terminal else trajectory.tokens,
                index=len(trajectory.segments),
                spent=spent.get(trajectory.trajectory_id, 0),
                terminal=trajectory.terminal,
            )
            for trajectory in group.trajectories
        )
        slot = Slot(group_id=group.group_id, prompt=group.prompt, born=group.born, attempts=attempts)
        if slot.finished:
            self.finished += 1
        else:
            self.slots[group.group_id] = slot
            self._attempts |= {attempt.trajectory_id: (slot, attempt) for attempt in attempts}
            self._changed(slot)

    def room(self) -> int:
        """How many fresh groups to begin now."""
        if self.closing or not self.rules.begins or self.finished >= self.rules.wanted:
            return 0
        free = max(0, self.rules.in_flight - len(self.slots))
        if self.rules.in_flight > self.rules.wanted:
            return free
        return max(0, min(free, self.rules.wanted - self.finished - self.able))

    def take(self, worker: str, capacity: int, engines: int, now: float) -> tuple[WorkItem, ...]:
        """Items for a worker with room for `capacity` trajectories; `engines` share what is ready, so that none takes
        it all.

        With several engines each gets half of its fair share at a time: the fast one comes back sooner and so gets
        more. One that holds nothing gets a whole group at least.
        """
        self.workers[worker] = now
        if self.closing:
            return ()
        limit = capacity if engines <= 1 else min(capacity, max(1, -(-self.ready // (2 * engines))))
        idle, left = not self._held.get(worker), self.rules.answer_bytes
        items: list[WorkItem] = []
        while limit > 0 and left > 0 and (slot := self._next_slot()) is not None:
            for bundle in _bundles(self._ready(slot), self.rules.sampling):
                if limit <= 0 or left <= 0:
                    break
                share = bundle[: capacity if idle and not items else limit]
                share, size = self._fitting(slot, share, left, at_least=0 if items else 1)
                left -= size
                if share:
                    items.append(self._hand_out(slot, share, worker, now))
                    limit -= len(share)
            self._changed(slot)
        return tuple(items)

    def returned(self, result: WorkResult, stored: Iterable[Segment], now: float) -> Taken:
        """A worker's answer; `stored` are the segments that the books took for the first time."""
        self.workers[result.worker] = now
        ended: list[Ended] = []
        finished: list[int] = []
        tokens = 0
        for segment in stored:
            tokens += len(segment.tokens)
            slot, attempt = self._attempts.get(segment.trajectory_id, (None, None))
            if slot is None or attempt is None or segment.index != attempt.index:
                continue
            self._grow(attempt, segment)
            self._changed(slot)
            if attempt.terminal:
                one = attempt.trajectory_id
                ended.append(Ended(trajectory_id=one, prompt=slot.prompt, tokens=attempt.tokens, stop=segment.stop))
                attempt.tokens = TokenIds()  # nobody goes on with them, and the others may take long
                if slot.finished:
                    finished.append(slot.group_id)
        self.tokens += tokens
        self.last_failure = result.failed or self.last_failure
        made = {segment.trajectory_id for segment in result.segments}
        self._release(result.item_id, result.trajectories, () if not result.failed else {*result.trajectories} - made)
        self._remove(finished)
        return Taken(ended=tuple(ended), finished=tuple(finished), tokens=tokens)

    def reclaim(self, worker: str, running: Iterable[str]) -> int:
        """The worker says which items it holds.

        Those that it should hold and does not are ready again. Returns how many.
        """
        held = self._held.get(worker)
        if not held:
            return 0
        running = set(running)
        return self._lose([one for one in held.values() if one.item_id not in running])

    def lose_silent(self, now: float, patience_s: float) -> int:
        """Items of workers that were not heard for `patience_s` are ready again. Returns how many."""
        silent = [name for name, heard in self.workers.items() if now - heard > patience_s]
        return sum(self._lose([*self._held.get(name, {}).values()]) for name in silent)

    def lose_all(self) -> int:
        """What is outstanding is given up: the time to return it is over. Returns how many."""
        return self._lose([*self.outstanding.values()])

    def heard(self, worker: str, now: float) -> None:
        """A sign of life."""
        self.workers[worker] = now

    def holds(self, worker: str) -> bool:
        """Whether a worker is to return something."""
        return bool(self._held.get(worker))

    def holders(self) -> tuple[str, ...]:
        """Workers that are to return something."""
        return tuple(sorted(name for name, held in self._held.items() if held))

    def close(self) -> None:
        """Hand out nothing more; what runs is to be cut and returned."""
        self.closing = True

    @property
    def done(self) -> bool:
        """Closing, and nothing is outstanding."""
        return self.closing and not self.outstanding

    @property
    def open_groups(self) -> int:
        """Groups that go on in a later phase, or in this one."""
        return len(self.slots)

    def settle(self) -> None:
        """Close when enough groups are finished, or nothing more can be done, or every try of so many has failed."""
        if self.closing:
            return
        enough = self.finished >= self.rules.wanted
        hopeless = not self.tokens and self.failures >= self.rules.most_failures * max(1, len(self._attempts))
        stuck = not self.outstanding and not self.ready and self.room() == 0
        self.closing = enough or stuck or hopeless

    # -- inside

    def _left(self, attempt: Attempt) -> int:
        """Tokens that the attempt may still generate in this phase."""
        sampling = self.rules.sampling
        if attempt.terminal or attempt.over:
            return 0
        return min(sampling.segment_tokens - attempt.spent, sampling.max_tokens - len(attempt.tokens))

    def _ready(self, slot: Slot) -> list[Attempt]:
        if slot.resting:
            return []
        return [attempt for attempt in slot.attempts if not attempt.item and self._left(attempt) > 0]

    def _changed(self, slot: Slot, *, gone: bool = False) -> None:
        """Count the slot anew and give it its place in the queue."""
        attempts = slot.attempts
        slot.resting = any(attempt.failures >= self.rules.most_failures for attempt in attempts)
        ready = 0 if gone else len(self._ready(slot))
        able = not (gone or slot.resting) and all(a.terminal or a.item or self._left(a) > 0 for a in attempts)
        self.ready += ready - slot.ready
        self.able += able - slot.able
        slot.ready, slot.able = ready, able
        key = (not any(attempt.index for attempt in attempts), slot.born, slot.group_id)
        if ready and slot.queued != key:
            slot.queued = key
            heapq.heappush(self._queue, key)

    def _next_slot(self) -> Slot | None:
        """The first slot with ready attempts, taken out of the queue."""
        while self._queue:
            key = heapq.heappop(self._queue)
            slot = self.slots.get(key[2])
            if slot is None or slot.queued != key:
                continue
            slot.queued = None
            if slot.ready:
                return slot
        return None

    def _fitting(self, slot: Slot, attempts: list[Attempt], left: int, at_least: int) -> tuple[list[Attempt], int]:
        """As many of the attempts as fit into `left` bytes, and the bytes that they take; all that is left, when they
        do not all fit."""
        size = item_bytes(f"{self.epoch}/{self.iteration}/{self.number}", slot.prompt.tokens, self.rules.sampling)
        for count, attempt in enumerate(attempts):
            more = resumption_bytes(attempt.tokens)
            if size + more > left and count >= at_least:
                return attempts[:count], left
            size += more
        return attempts, size

    def _hand_out(self, slot: Slot, attempts: list[Attempt], worker: str, now: float) -> WorkItem:
        item_id = f"{self.epoch}/{self.iteration}/{self.number}"
        self.number += 1
        ids = {attempt.trajectory_id for attempt in attempts}
        held = Outstanding(item_id=item_id, group_id=slot.group_id, worker=worker, since=now, open=ids)
        self.outstanding[item_id] = self._held.setdefault(worker, {})[item_id] = held
        for attempt in attempts:
            attempt.item = item_id
        sampling = self.rules.sampling
        return WorkItem(
            item_id=item_id,
            group_id=slot.group_id,
            version=self.version,
            prompt_tokens=slot.prompt.tokens,
            trajectories=tuple(
                Resumption(trajectory_id=a.trajectory_id, index=a.index, tokens=a.tokens) for a in attempts
            ),
            sampling=replace(sampling, segment_tokens=sampling.segment_tokens - attempts[0].spent),
            seed=self.rules.seed,
        )

    @staticmethod
    def _grow(attempt: Attempt, segment: Segment) -> None:
        attempt.tokens += segment.tokens
        attempt.index += 1
        attempt.spent += len(segment.tokens)
        attempt.terminal = segment.stop.terminal
        attempt.over = segment.stop is Stop.BUDGET

    def _release(self, item_id: str, ids: Iterable[int], failed: Iterable[int] = ()) -> None:
        """The worker is done with these trajectories of the item; the last one ends it."""
        held = self.outstanding.get(item_id)
        if held is None:
            return
        for one in held.open.intersection(ids):
            held.open.discard(one)
            slot, attempt = self._attempts.get(one, (None, None))
            if slot is None or attempt is None or attempt.item != item_id:
                continue
            attempt.item = ""
            if one in failed and not self.closing:  # a cut before the first token is no fault
                attempt.failures += 1
                self.failures += 1
            self._changed(slot)
        if not held.open:
            del self.outstanding[item_id], self._held[held.worker][item_id]

    def _lose(self, lost: list[Outstanding]) -> int:
        for held in lost:
            self._release(held.item_id, [*held.open])
        if lost:
            self.settle()
        return len(lost)

    def _remove(self, finished: Iterable[int]) -> None:
        for group_id in finished:
            slot = self.slots.pop(group_id)
            self._changed(slot, gone=True)
            for attempt in slot.attempts:
                del self._attempts[attempt.trajectory_id]
            self.finished += 1
        self.settle()


def _bundles(attempts: list[Attempt], sampling: SamplingSettings) -> list[list[Attempt]]:
    """Attempts that may share one request: the same length so far and the same budget left."""
    bundles: dict[tuple[int, int], list[Attempt]] = {}
    for attempt in attempts:
        bundles.setdefault((len(attempt.tokens), sampling.segment_tokens - attempt.spent), []).append(attempt)
    return list(bundles.values())

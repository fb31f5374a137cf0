"""The work buffer of one rollout phase: who generates what, what is outstanding, and when the phase is over. Pure
(design 8.1).

Words. A *slot* holds one open group; there are `in_flight` of them. An *attempt* is one trajectory of a slot within
this phase; it may spend `segment_tokens` here. An *item* is what a worker takes: attempts of one group that have the
same length and the same tokens left, so that a fresh group is one item with k resumptions and the engine answers it
in one request.

Promises: an attempt is in at most one outstanding item; an item that failed, was lost or came back in part leaves its
attempts ready again; saved groups go before fresh ones, older before younger; nothing is handed out once the phase is
closing.

Fresh groups. When `in_flight` is above `wanted`, every freed slot is refilled at once until `wanted` groups are
finished: what is left of them goes on under newer weights. When it is not, only as many are begun as are still
needed: with answers that fit into a phase nothing is begun in vain, and every token is on-policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Group, Prompt, Resumption, SamplingSettings, Segment, Stop, WorkItem, WorkResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The numbers of a phase."""

    wanted: int  # finished groups that end the phase
    in_flight: int  # slots
    sampling: SamplingSettings
    seed: int
    most_failures: int = 8  # of one group in a phase; then it rests until the next phase
    begins: bool = True  # fresh groups may be begun; an evaluation has all of its own from the start


@dataclass(slots=True)
class Attempt:
    """One trajectory within this phase."""

    trajectory_id: int
    tokens: TokenIds
    index: int  # of the next segment
    spent: int  # tokens generated in this phase
    terminal: bool
    over: bool = False  # the engine said BUDGET: nothing more in this phase
    item: str = ""  # outstanding item; empty when none


@dataclass(slots=True)
class Slot:
    """One group in flight."""

    group_id: int
    prompt: Prompt
    born: int
    attempts: tuple[Attempt, ...]
    failures: int = 0

    @property
    def finished(self) -> bool:
        """All attempts are terminal."""
        return all(attempt.terminal for attempt in self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """An item that a worker holds."""

    item: WorkItem
    worker: str
    since: float


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
    failures: int = 0  # items given back as failed
    last_failure: str = ""  # why the newest of them failed
    number: int = 0  # of the next item
    group_of: dict[int, int] = field(default_factory=dict)  # by trajectory

    def admit(self, group: Group, spent: Mapping[int, int]) -> None:
        """Put a group into a slot.

        `spent`: tokens that a trajectory has already generated in this iteration (after a restart).
        """
        attempts = tuple(
            Attempt(
                trajectory_id=trajectory.trajectory_id,
                tokens=trajectory.tokens,
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
            self.group_of |= {attempt.trajectory_id: group.group_id for attempt in attempts}

    def room(self) -> int:
        """How many fresh groups to begin now."""
        if self.closing or not self.rules.begins or self.finished >= self.rules.wanted:
            return 0
        free = max(0, self.rules.in_flight - len(self.slots))
        if self.rules.in_flight > self.rules.wanted:
            return free
        able = sum(self._able(slot) for slot in self.slots.values())
        return max(0, min(free, self.rules.wanted - self.finished - able))

    def take(self, worker: str, capacity: int, engines: int, now: float) -> tuple[WorkItem, ...]:
        """Items for a worker with room for `capacity` trajectories; `engines` share what is ready, so that none takes
        it all.

        With several engines each gets half of its fair share at a time: the fast one comes back sooner and so gets
        more.
        """
        self.workers[worker] = now
        if self.closing:
            return ()
        ready = sum(len(self._ready(slot)) for slot in self.slots.values())
        limit = capacity if engines <= 1 else min(capacity, max(1, -(-ready // (2 * engines))))
        idle = not self.held_by(worker)
        items: list[WorkItem] = []
        for slot in sorted(self.slots.values(), key=_saved_first):
            for bundle in _bundles(self._ready(slot), self.rules.sampling):
                if limit <= 0:
                    return tuple(items)
                first = idle and not items
                if len(bundle) > limit and not first:
                    continue
                share = bundle[: max(1, capacity)] if first else bundle
                items.append(self._hand_out(slot, share, worker, now))
                limit -= len(share)
        return tuple(items)

    def returned(self, result: WorkResult, stored: Iterable[Segment], now: float) -> Taken:
        """A worker's answer; `stored` are the segments that the books took for the first time."""
        self.workers[result.worker] = now
        ended: list[Ended] = []
        finished: list[int] = []
        tokens = 0
        for segment in stored:
            tokens += len(segment.tokens)
            slot, attempt = self._find(segment.trajectory_id)
            if slot is None or attempt is None or segment.index != attempt.index:
                continue
            self._grow(attempt, segment)
            if attempt.terminal:
                ended.append(
                    Ended(
                        trajectory_id=attempt.trajectory_id,
                        prompt=slot.prompt,
                        tokens=attempt.tokens,
                        stop=segment.stop,
                    )
                )
                if slot.finished:
                    finished.append(slot.group_id)
        self.tokens += tokens
        held = self.outstanding.pop(result.item_id, None)
        self.last_failure = result.failed or self.last_failure
        if held is not None:
            self._give_back(held.item, failed=bool(result.failed))
        self._remove(finished)
        return Taken(ended=tuple(ended), finished=tuple(finished), tokens=tokens)

    def reclaim(self, worker: str, running: Iterable[str]) -> int:
        """The worker says which items it holds.

        Those that it should hold and does not are ready again. Returns how many.
        """
        lost = [held for held in self.held_by(worker) if held.item.item_id not in set(running)]
        for held in lost:
            self._lose(held)
        return len(lost)

    def lose_silent(self, now: float, patience_s: float) -> int:
        """Items of workers that were not heard for `patience_s` are ready again. Returns how many."""
        lost = [
            held for held in self.outstanding.values() if now - self.workers.get(held.worker, held.since) > patience_s
        ]
        for held in lost:
            self._lose(held)
        return len(lost)

    def lose_all(self) -> int:
        """What is outstanding is given up: the time to return it is over. Returns how many."""
        lost = list(self.outstanding.values())
        for held in lost:
            self._lose(held)
        return len(lost)

    def heard(self, worker: str, now: float) -> None:
        """A sign of life."""
        self.workers[worker] = now

    def held_by(self, worker: str) -> tuple[Outstanding, ...]:
        """What a worker is to return."""
        return tuple(held for held in self.outstanding.values() if held.worker == worker)

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
        hopeless = not self.tokens and self.failures >= self.rules.most_failures * self.rules.in_flight
        stuck = not self.outstanding and not any(self._ready(slot) for slot in self.slots.values()) and self.room() == 0
        self.closing = enough or stuck or hopeless

    # -- inside

    def _able(self, slot: Slot) -> bool:
        """May still finish in this phase."""
        return slot.failures < self.rules.most_failures and all(
            a.terminal or a.item or self._left(a) > 0 for a in slot.attempts
        )

    def _left(self, attempt: Attempt) -> int:
        """Tokens that the attempt may still generate in this phase."""
        sampling = self.rules.sampling
        if attempt.terminal or attempt.over:
            return 0
        return min(sampling.segment_tokens - attempt.spent, sampling.max_tokens - len(attempt.tokens))

    def _ready(self, slot: Slot) -> list[Attempt]:
        if slot.failures >= self.rules.most_failures:
            return []
        return [attempt for attempt in slot.attempts if not attempt.item and self._left(attempt) > 0]

    def _hand_out(self, slot: Slot, attempts: list[Attempt], worker: str, now: float) -> WorkItem:
        item_id = f"{self.epoch}/{self.iteration}/{self.number}"
        self.number += 1
        item = WorkItem(
            item_id=item_id,
            group_id=slot.group_id,
            version=self.version,
            prompt_tokens=slot.prompt.tokens,
            trajectories=tuple(
                Resumption(trajectory_id=a.trajectory_id, index=a.index, tokens=a.tokens) for a in attempts
            ),
            sampling=_for_item(self.rules.sampling, attempts[0].spent),
            seed=_mix(self.rules.seed, slot.group_id, attempts[0].trajectory_id, attempts[0].index),
        )
        for attempt in attempts:
            attempt.item = item_id
        self.outstanding[item_id] = Outstanding(item=item, worker=worker, since=now)
        return item

    def _find(self, trajectory_id: int) -> tuple[Slot | None, Attempt | None]:
        slot = self.slots.get(self.group_of.get(trajectory_id, 0))
        if slot is None:
            return None, None
        return slot, next(attempt for attempt in slot.attempts if attempt.trajectory_id == trajectory_id)

    @staticmethod
    def _grow(attempt: Attempt, segment: Segment) -> None:
        attempt.tokens += segment.tokens
        attempt.index += 1
        attempt.spent += len(segment.tokens)
        attempt.terminal = segment.stop.terminal
        attempt.over = segment.stop is Stop.BUDGET

    def _give_back(self, item: WorkItem, *, failed: bool) -> None:
        failed = failed and not self.closing  # a cut before the first token is no fault
        self.failures += failed
        slot = self.slots.get(item.group_id)
        if slot is None:
            return
        slot.failures += failed
        for attempt in slot.attempts:
            if attempt.item == item.item_id:
                attempt.item = ""

    def _lose(self, held: Outstanding) -> None:
        del self.outstanding[held.item.item_id]
        self._give_back(held.item, failed=False)
        self.settle()

    def _remove(self, finished: Iterable[int]) -> None:
        for group_id in finished:
            del self.slots[group_id]
            self.finished += 1
        self.settle()


def _saved_first(slot: Slot) -> tuple[bool, int, int]:
    return (not any(attempt.index for attempt in slot.attempts), slot.born, slot.group_id)


def _bundles(attempts: list[Attempt], sampling: SamplingSettings) -> list[list[Attempt]]:
    """Attempts that may share one request: the same length so far and the same budget left."""
    bundles: dict[tuple[int, int], list[Attempt]] = {}
    for attempt in attempts:
        bundles.setdefault((len(attempt.tokens), sampling.segment_tokens - attempt.spent), []).append(attempt)
    return list(bundles.values())


def _for_item(sampling: SamplingSettings, spent: int) -> SamplingSettings:
    """The settings with what is left of this phase's budget."""
    return SamplingSettings(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        segment_tokens=sampling.segment_tokens - spent,
        max_tokens=sampling.max_tokens,
        stop_token_ids=sampling.stop_token_ids,
        repeat_ngram=sampling.repeat_ngram,
        repeat_count=sampling.repeat_count,
    )


def _mix(*parts: int) -> int:
    """A 31-bit seed that differs between items and is the same in a repeated run."""
    value = 0x9E3779B9
    for part in parts:
        value = (value ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        value ^= value >> 13
    return value & 0x7FFFFFFF

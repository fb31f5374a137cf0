"""Whatever order returns, failures, cuts, commits and restarts come in: no prompt twice, none lost, no token twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings, strategies

from twinpod.master import books_read as read
from twinpod.master.books import Books, Identity, Scored
from twinpod.master.inspect import report
from twinpod.master.prompts import PromptSource
from twinpod.master.work_buffer import Rules, WorkBuffer
from twinpod.records.rollout import GroupState, WorkItem, WorkResult
from twinpod.replay.policy import choose, complete, usable
from twinpod.sampling.uniform import Uniform
from twinpod.testing.small_run import generate, prompts, record
from twinpod.testing.small_run import settings as numbers

K, WANTED, PROMPTS = 2, 2, 7
RULES = Rules(wanted=WANTED, in_flight=3, sampling=numbers().sampling, seed=1)
ACTS = strategies.lists(strategies.tuples(strategies.integers(0, 8), strategies.integers(0, 30)), max_size=120)


class Run:
    """A master's deeds, one at a time, on real books."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epoch = 0
        self.snapshots: set[str] = set()
        self.source = PromptSource(prompts(PROMPTS), (), Uniform(size=PROMPTS, seed=1))
        self.late: list[WorkResult] = []
        self.start()

    def start(self) -> None:
        """A master begins where the books stand."""
        self.epoch += 1
        self.books = Books.open(self.folder, Identity(job="j", fields={}))
        self.books.begin_epoch(self.epoch)
        resume = self.books.resume(self.snapshots.__contains__)
        self.done, self.line = resume.iteration, resume.line
        same = resume.version == resume.newest_version
        self.version = max(1, resume.version if same else resume.newest_version + 1)
        self.books.record_version(self.version, self.done, "d")
        self.begin_phase()

    def begin_phase(self) -> None:
        db = self.books.connection
        self.work = WorkBuffer(rules=RULES, epoch=self.epoch, iteration=self.done + 1, version=self.version)
        self.work.finished = sum(complete(one) and usable(one) for one in read.held(db))
        for group in read.groups_in(db, (GroupState.OPEN,)):
            self.work.admit(group, read.spent_in(db, self.done + 1))
        self.held: list[WorkItem] = []
        self.work.settle()

    def take(self, capacity: int) -> None:
        if room := self.work.room():
            for group in self.books.begin_groups(self.source.next(self.books.connection, room), K, self.done + 1):
                self.work.admit(group, {})
        self.held += self.work.take("w", 1 + capacity % 5, 1, 0.0)

    def give(self, result: WorkResult) -> None:
        stored = self.books.store(result.segments, self.done + 1)
        taken = self.work.returned(result, stored.accepted, 0.0)
        verdicts = [
            Scored(trajectory_id=one.trajectory_id, reward=0.5, correct=False, masked="") for one in taken.ended
        ]
        self.books.score(verdicts)

    def commit(self, snapshot: bool) -> None:
        chosen = choose(read.held(self.books.connection), WANTED)
        version = self.version + bool(chosen)
        folder = f"s{self.done + 1}-{self.epoch}" if snapshot else ""
        self.snapshots |= {folder} - {""}
        one = record(self.done + 1, version=version, snapshot=folder, groups=len(chosen))
        self.books.commit(one, chosen, "d")
        self.done, self.version = self.done + 1, version
        self.begin_phase()

    def act(self, kind: int, number: int) -> None:
        """One deed: `kind` says which, `number` how."""
        if kind <= 1:
            self.take(number)
        elif kind <= 4 and self.held:
            item = self.held.pop(number % len(self.held))
            result = generate(item, "w", cut_after=1 + number % 3)
            self.late.append(result)
            self.give(result)
        elif kind == 5 and self.held:  # lost on the way, perhaps to come back later
            item = self.held.pop(number % len(self.held))
            self.work.reclaim("w", [one.item_id for one in self.held])
            self.late.append(generate(item, "w"))
        elif kind == 6 and self.late:
            self.give(self.late[number % len(self.late)])
        elif kind == 7:
            self.work.close()
            self.work.lose_all()
            self.commit(snapshot=number % 3 == 0)
        elif kind == 8 and number % 3 == 0:
            self.books.close()
            self.start()

    def finish(self) -> None:
        """Go on without trouble until every prompt of the first pass is trained."""
        for _ in range(200):
            self.take(100)
            while self.held:
                self.give(generate(self.held.pop(), "w"))
            if self.work.closing:
                self.commit(snapshot=True)
            if len(trained(self.books)) >= PROMPTS:
                return
        raise AssertionError("prompts were lost: " + str(set(range(PROMPTS)) - trained(self.books)))


def trained(books: Books) -> set[int]:
    return {
        row[0] for row in books.connection.execute("SELECT prompt_id FROM trained WHERE rolled_back = 0 AND pass = 0")
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=ACTS)
def test_nothing_is_lost_or_done_twice(acts: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run = Run(Path(folder))
        for kind, number in acts:
            run.act(kind, number)
        run.finish()
        told = report(run.books.connection)
        assert told.trained_twice_in_a_pass == told.duplicate_tokens == told.chains_broken == 0
        for group in read.groups_in(run.books.connection, (GroupState.TRAINED,)):
            for one in group.trajectories:
                assert one.terminal
                assert tuple(one.tokens[:-1]) == tuple(
                    10 + (one.trajectory_id + n) % 90 for n in range(len(one.tokens) - 1)
                )
        run.books.close()

"""kill -9 of one process of a run after the other, each in a chosen moment, and what became of it.

Theory of operation. A *target* is a (process, moment). The hunter looks into the books every few milliseconds until
they say the moment, kills, and looks again: only when the phase is still the same the target counts as hit; otherwise
the kill counts for what it is, and the target is tried again. Then it waits for the next committed iteration, which is
the recovery. Whoever takes the whole run along (`FATAL`) makes a start, and a start is when `STARTING` targets are due.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from tests.flow.survival_scene import Moment, Process, Run, Scene, Sight, engine_family, until

PATIENCE_S = 300.0  # from a kill to the next commit, and to meet a target
TRIES = 6  # of one target

FATAL = (
    Process.MASTER,
    Process.TRAINING_HALF,
    Process.AGENT,
    Process.RANK,
    Process.LAUNCHER,
    Process.FRONT,
)  # all pods start again
AGAIN = (Process.LAUNCHER, Process.FRONT)  # a person gives the command again
LATE = (Moment.TRAIN, Moment.WEIGHTS, Moment.SNAPSHOT, Moment.COMMIT)  # the commit of this iteration proves nothing
ENGINES = (Process.ENGINE, Process.SCHEDULER, Process.DETOKENIZER)


def exists(process: Process, moment: Moment) -> bool:
    """Whether there is such a process then. With the life cycle Restart no engine runs while the trainer has the
    machine, and weights of this size are published and kept before the next one is forked: killing it while a snapshot
    is written is left to `make soak`, whose luck it is.
    """
    return process not in ENGINES or moment not in (Moment.STARTING, Moment.TRAIN, Moment.WEIGHTS, Moment.SNAPSHOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill -9. `recovery_s`: to the commit of an iteration whose rollout came after it, or to the run's end."""

    process: Process
    moment: Moment | None  # None: the phase changed while we shot
    phase: str
    iteration: int
    epoch: int
    recovery_s: float | None = None  # None: another kill came first
    restarted: bool = False  # all pods started again


@dataclass(slots=True)
class Hunt:
    """Life: made around a run that is started, `hit` targets, `finish`. `kills` and `troubles` tell afterwards."""

    run: Run
    iterations: int
    say: Callable[[str], None] = print
    kills: list[Kill] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    _scene: Scene = field(init=False)
    _pids: dict[Process, int] = field(default_factory=dict)
    _looked: float = 0.0
    _begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._scene = Scene(self.run.folder)

    def hit(self, process: Process, moment: Moment, *, recover: bool = True) -> bool:
        """Kill it then; waits for the next commit when `recover`."""
        for _ in range(TRIES):
            if moment is Moment.STARTING and self._scene.look().moment is not Moment.STARTING:
                self._kill_now(Process.MASTER)
            kill = until(lambda: self._aim(process, moment), PATIENCE_S, 0.002)
            if kill is None:
                self.trouble(f"{process} was never there in {moment}; the run stands at {self._scene.look()}")
                break
            self._after(kill, recover=recover)
            if kill.moment is moment:
                return True
        self.missed.append(f"{process} in {moment}")
        return False

    def hit_after(self, process: Process, seconds: float, *, recover: bool = True) -> None:
        """Kill it that many seconds from now, or as soon after that as it is there, whatever the phase."""
        at = time.monotonic() + seconds
        if until(lambda: time.monotonic() > at and process in self._look_round(), PATIENCE_S):
            self._after(self._shoot(process, self._scene.look()), recover=recover)
        else:
            self.trouble(f"{process} was never there; the run stands at {self._scene.look()}")

    def order(self, iterations: int) -> None:
        """The same command with another number of iterations."""
        self.iterations = iterations
        self._kill_now(Process.LAUNCHER)

    def finish(self) -> int:
        """Let the run come to its end; returns the exit code of the last start."""
        until(lambda: self._ended() == "over", PATIENCE_S)
        code = self.run.code()
        if code != 0:
            self.trouble(f"the run did not end: exit code {code}, {self._scene.look()}")
        return -1 if code is None else code

    def iteration(self) -> int:
        """The one that is under way."""
        return self._scene.look().iteration

    def trouble(self, line: str) -> None:
        """Something that should not have happened."""
        self.troubles.append(line)
        self._say(f"TROUBLE {line}")

    def _say(self, line: str) -> None:
        self.say(f"{time.monotonic() - self._begun:6.1f} s  {line}")

    def _aim(self, process: Process, moment: Moment) -> Kill | None:
        """One try; None when it is not the moment, or the process is not there.

        Some moments last a few hundredths of a second, and a look at all processes takes longer on a busy machine: who
        is who is found out before them. Engines come and go, and are looked for again and again below their standby.
        """
        if self.run.code() is not None:
            self._ended()
        if process in ENGINES and Process.STANDBY in self._pids:
            others = {who: pid for who, pid in self._pids.items() if who not in ENGINES}
            self._pids = others | engine_family(self._pids)
        before = self._scene.look()
        if before.moment is moment and process in self._pids:
            return self._shoot(process, before)
        if (process not in self._pids and process not in ENGINES) or time.monotonic() - self._looked > 1.0:
            self._look_round()
        return None

    def _kill_now(self, process: Process) -> None:
        """Whenever."""
        if until(lambda: process in self._look_round(), PATIENCE_S):
            self._after(self._shoot(process, self._scene.look()), recover=False)

    def _look_round(self) -> dict[Process, int]:
        self._pids, self._looked = self.run.pids(), time.monotonic()
        return self._pids

    def _shoot(self, process: Process, before: Sight) -> Kill | None:
        try:
            os.kill(self._pids.pop(process), signal.SIGKILL)
        except ProcessLookupError:
            return None
        after = self._scene.look()
        still = (after.phase, after.iteration, after.epoch) == (before.phase, before.iteration, before.epoch)
        return Kill(
            process=process,
            moment=before.moment if still else None,
            phase=before.phase,
            iteration=before.iteration,
            epoch=before.epoch,
        )

    def _after(self, kill: Kill | None, *, recover: bool) -> None:
        """Remember the kill, give the command again where a person must, and wait for the recovery."""
        if kill is None:
            return
        shot, began, commits, epoch = kill, time.monotonic(), self._scene.look().commits, kill.epoch
        if kill.process in FATAL:
            self._scene.forget()
        if kill.process in AGAIN:
            self._again()
        where = f"{kill.process} in {kill.moment or 'between'} ({kill.phase}, iteration {kill.iteration})"
        if recover:
            over = until(lambda: self._ended() == "over" or self._recovered(shot, commits), PATIENCE_S, 0.02)
            if over is None:
                self.trouble(f"no commit within {PATIENCE_S:.0f} s of killing {where}: {self._scene.look()}")
            kill = replace(
                kill,
                recovery_s=time.monotonic() - began if over else None,
                restarted=self._scene.look().epoch > epoch,
            )
        self.kills.append(kill)
        told = "" if kill.recovery_s is None else f", recovered in {kill.recovery_s:.1f} s"
        self._say(f"killed {where}{told}{', all pods started again' if kill.restarted else ''}")

    def _recovered(self, kill: Kill, commits: int) -> bool:
        now = self._scene.look()
        if kill.process in FATAL:
            return now.commit_epoch > kill.epoch
        return now.commits > commits + (kill.moment in LATE)

    def _again(self) -> None:
        until(lambda: self.run.code() is not None, 30.0)
        self._scene.forget()
        self.run.start(self.iterations)

    def _ended(self) -> str:
        """ "over" when the run has succeeded; a run that failed is a trouble, and started again."""
        code = self.run.code()
        if code == 0:
            return "over"
        if code is not None:
            self.trouble(f"the run ended by itself with exit code {code}: {self.run.last_words(3)}")
            self._again()
        return ""


def table(kills: Iterable[Kill]) -> str:
    """Who was hit when, with the seconds to the next commit: the median of those that were let recover, else a dot."""
    kills = [kill for kill in kills if kill.moment is not None]
    lines = [f"{'kill -9 of':20}" + "".join(f"{moment:>12}" for moment in Moment)]
    for process in Process:
        cells = [_cell([kill for kill in kills if (kill.process, kill.moment) == (process, m)]) for m in Moment]
        lines.append(f"{process:20}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _cell(kills: list[Kill]) -> str:
    seconds = sorted(kill.recovery_s for kill in kills if kill.recovery_s is not None)
    number = f" x{len(kills)}" if len(kills) > 1 else ""
    return f"{seconds[len(seconds) // 2]:.1f} s{number}" if seconds else "." * bool(kills) + number

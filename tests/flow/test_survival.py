"""kill -9 of every process of a run, in every phase, one after the other: the real circle, on a very small model.

One long campaign (module fixture), then sentences about what is left of it. `pytest -s` shows every kill with the
seconds from it to the next commit, and the table in the end; `make soak` does the same at random.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.flow.survival_books import count_faults, prompt_faults
from tests.flow.survival_hunt import FATAL, Hunt, Kill, exists, table
from tests.flow.survival_scene import Moment, Process, Run, leftovers, until

from twinpod.master.inspect import inspect
from twinpod.records.run import RunReport

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root"),
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd"),
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="needs SGLang"),
]

WORK = (Moment.GENERATE, Moment.TRAIN, Moment.WEIGHTS, Moment.SWITCH, Moment.SNAPSHOT)
FAR = 100_000  # iterations: the campaign says when it is enough
MORE = 3  # iterations after the last kill


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What a campaign leaves behind."""

    folder: Path
    ordered: int
    code: int
    kills: tuple[Kill, ...]
    missed: tuple[str, ...]
    troubles: tuple[str, ...]
    left: tuple[str, ...]
    report: RunReport


def fight(hunt: Hunt) -> None:
    """Every process in every phase; whoever takes the run along makes a start, in which the next one is killed."""
    for moment in WORK:
        for process in Process:
            if process not in FATAL and exists(process, moment):
                hunt.hit(process, moment)
    starts = [process for process in Process if exists(process, Moment.STARTING) and process is not Process.FRONT]
    for moment in WORK:
        for process in FATAL:
            if process is Process.FRONT and moment is not Moment.GENERATE:
                continue  # it holds nothing: its death is the launcher's
            hunt.hit(process, moment, recover=not starts)
            if starts:
                hunt.hit(starts.pop(0), Moment.STARTING)
    hunt.hit(Process.ETCD, Moment.COMMIT)
    hunt.hit(Process.MASTER, Moment.COMMIT)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    run = Run(tmp_path_factory.mktemp("survival") / "survival")
    run.start(FAR)
    hunt = Hunt(run, FAR)
    try:
        fight(hunt)
        hunt.order(hunt.iteration() + MORE)
        hunt.hit(Process.MASTER, Moment.FINISH)
        code = hunt.finish()
    finally:
        run.close()
        print(table(hunt.kills))
    until(lambda: not leftovers(run.folder), 10.0)
    return Campaign(
        folder=run.folder,
        ordered=hunt.iterations,
        code=code,
        kills=tuple(hunt.kills),
        missed=tuple(hunt.missed),
        troubles=tuple(hunt.troubles),
        left=tuple(leftovers(run.folder)),
        report=inspect(run.folder),
    )


def test_every_process_was_killed_in_every_phase(campaign: Campaign) -> None:
    assert campaign.missed == ()
    hit = {(kill.process, kill.moment) for kill in campaign.kills}
    wanted = {(process, moment) for process in Process for moment in WORK if exists(process, moment)}
    wanted -= {(Process.FRONT, moment) for moment in WORK if moment is not Moment.GENERATE}
    assert wanted - hit == set()
    starting = {process for process in Process if exists(process, Moment.STARTING)} - {Process.FRONT}
    assert starting - {kill.process for kill in campaign.kills if kill.moment is Moment.STARTING} == set()


def test_the_run_mended_itself_and_came_to_its_end(campaign: Campaign) -> None:
    assert campaign.troubles == ()
    assert campaign.code == 0


def test_only_those_that_must_take_the_run_along(campaign: Campaign) -> None:
    """A kill during a start is left out: its epoch is that of the master before, whose successor was on its way."""
    settled = [kill for kill in campaign.kills if kill.moment is not Moment.STARTING]
    assert [kill for kill in settled if kill.restarted and kill.process not in FATAL] == []


def test_every_iteration_was_committed_once_and_no_token_is_there_twice(campaign: Campaign) -> None:
    assert count_faults(campaign.report, campaign.ordered) == []


def test_no_prompt_was_trained_twice_in_a_pass_and_none_was_lost(campaign: Campaign) -> None:
    assert prompt_faults(campaign.folder / "state/books.sqlite") == []


def test_answers_went_on_after_the_death_of_who_began_them(campaign: Campaign) -> None:
    assert campaign.report.trajectories_spanning_versions > 0
    assert campaign.report.resumes > 0


def test_nothing_is_left_on_the_machine(campaign: Campaign) -> None:
    assert campaign.left == ()

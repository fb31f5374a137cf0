"""Rewards that hang, crash, print and leave processes behind, judged by real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from twinpod.api.types import DatasetSpec, RewardSpec
from twinpod.child import Child, Opened
from twinpod.errors import EnvironmentFault, InputError, Unreachable
from twinpod.master.judge_process import JudgeSetup
from twinpod.master.judges import JudgePool, Lost
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt
from twinpod.sampling.datasets import open_dataset

REWARDS = """
import os, signal, subprocess, sys, threading
import numpy as np
from twinpod.reward.port import Verdict

def fine(prompt, text):
    print("a line on standard output is no answer")
    return Verdict(reward=np.float32(len(text)), correct=np.bool_(True))

def by_text(prompt, text):
    if text == "hang":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"])
        while True:
            pass
    if text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if text == "leave":
        os._exit(7)
    if text == "exit":
        sys.exit("I am done")
    return 1.0

def text(prompt, answer):
    return "1"

def seed(prompt, answer):
    return float(os.environ["PYTHONHASHSEED"] == "0" and hash("a") == int(answer))
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The rewards, importable in a child; and a mark in the environment of whatever it starts."""
    (tmp_path / "bad_rewards.py").write_text(REWARDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TWINPOD_TEST_MARK", str(tmp_path))
    return str(tmp_path)


def marked(mark: str) -> list[int]:
    """Processes that were started from here and live, ourselves apart."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TWINPOD_TEST_MARK={mark}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended, or is not ours to read
    return found


def children() -> set[str]:
    """Children of ours, dead but unreaped ones included."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def prompt(number: int = 0) -> Prompt:
    return Prompt(prompt_id=number, text="?", answer="x", difficulty=0.0, tokens=TokenIds([2]))


@asynccontextmanager
async def pool(function: str, *, at_once: int = 2, within_s: float = 30.0) -> AsyncIterator[JudgePool]:
    reward = RewardSpec(kind="entryPoint", target=f"bad_rewards:{function}")
    data = DatasetSpec.model_validate({"jsonLines": {"path": "/unused"}})
    judges = JudgePool(JudgeSetup(reward=reward, dataset=data, seed=0), {}, at_once=at_once, within_s=within_s)
    try:
        await judges.start()
        yield judges
    finally:
        await asyncio.to_thread(judges.close)


async def test_what_a_reward_answers_is_coerced_and_what_it_prints_is_no_answer(module: str) -> None:
    before = children()
    async with pool("fine") as judges:
        verdicts = await asyncio.gather(*(judges.score(prompt(), "abc") for _ in range(20)))
        assert {(one.reward, one.correct, one.error) for one in verdicts} == {(3.0, True, "")}
        assert len(children() - before) <= 2
    async with pool("text") as judges:
        assert (await judges.score(prompt(), "")).error == "bad_rewards:text: answered '1', which is no number"
    assert children() <= before
    assert marked(module) == []


async def test_a_hang_costs_its_answer_alone_and_nothing_of_it_stays(module: str) -> None:
    before = children()
    async with pool("by_text", within_s=2.0) as judges:
        began = time.monotonic()
        hanging = asyncio.create_task(judges.score(prompt(1), "hang"))
        fine = [await judges.score(prompt(), "abc") for _ in range(10)]
        assert time.monotonic() - began < 2.0 or hanging.done(), "others are judged meanwhile"
        with pytest.raises(Lost, match=r"reward: no answer within 2 s") as lost:
            await hanging
        assert lost.value.late
        assert [one.reward for one in fine] == [1.0] * 10
        again = [await judges.score(prompt(), "abc") for _ in range(4)]
        assert [one.reward for one in again] == [1.0] * 4, "the process was replaced"
        living = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in marked(module)}
        assert not {name for name in living if b"sleep" in name}
    assert children() <= before
    assert marked(module) == []


@pytest.mark.parametrize(
    ("text", "said"), [("crash", "was killed by SIGSEGV"), ("leave", "exit code 7"), ("exit", "exit code 1")]
)
async def test_a_process_that_ends_costs_its_answer_alone(text: str, said: str) -> None:
    async with pool("by_text", at_once=1) as judges:
        for _ in range(2):
            with pytest.raises(Lost, match=said) as lost:
                await judges.score(prompt(), text)
            assert not lost.value.late
            assert (await judges.score(prompt(), "abc")).correct


async def test_closing_ends_judges_that_hang_at_once(module: str) -> None:
    async with AsyncExitStack() as stack:
        judges = await stack.enter_async_context(pool("by_text", within_s=1000.0))
        hanging = [asyncio.create_task(judges.score(prompt(), "hang")) for _ in range(5)]
        await asyncio.wait(hanging, timeout=0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 8.0
    assert marked(module) == []
    ended = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(one, Lost | asyncio.CancelledError) for one in ended)


@pytest.mark.parametrize("victim", ["worker", "master"])
async def test_whichever_is_killed_nothing_stays(module: str, victim: str) -> None:
    script = (
        "import sys, threading\nfrom twinpod.child import Child\n"
        f"child = Child('{__name__.rpartition('.')[2]}:opened', None, name='c', start_s=200)\n"
        "print(child.first, child._owner.pid, flush=True)\nthreading.Event().wait()\n"
    )
    path = f"{module}:{Path(__file__).parent}"
    master = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert master.stdout is not None
        worker, owner = map(int, (await asyncio.to_thread(master.stdout.readline)).split())
        os.kill({"owner": owner, "worker": worker, "master": master.pid}[victim], signal.SIGKILL)
        async with asyncio.timeout(20):
            while set(marked(module)) - {master.pid}:
                await asyncio.sleep(0.05)
    finally:
        master.kill()
        master.wait()


def opened(_argument: object) -> Opened:
    """In the child: a process of its own beside it; says who it is."""
    subprocess.Popen(["sleep", "1000"])
    return threading.Event().wait, os.getpid()


def refuses(_argument: object) -> Opened:
    raise InputError("is wrong", where="here", mend="mend it")


def test_what_the_opening_raises_is_raised_here_and_a_deadline_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    here = Path(__file__).stem
    with pytest.raises(InputError, match=r"^here: is wrong; mend it$"):
        Child(f"{here}:refuses", None, name="c", start_s=200)
    with pytest.raises(EnvironmentFault, match=r"c: its process ended with exit code 1"):
        Child(f"{here}:no_such", None, name="c", start_s=200)
    child = Child(f"{here}:opened", None, name="c", start_s=200)
    with pytest.raises(Unreachable, match=r"c: no answer within 0\.5 s"):
        child.ask(None, 0.5)
    assert children() == set() or str(child.first) not in children()


@pytest.mark.parametrize("name", ["ransom_note", "word_ladder", "spell_backward"])
def test_reasoning_gym_gives_the_same_prompts_whatever_the_hash_seed_and_scores_its_own_answers(
    module: str, name: str
) -> None:
    script = (
        "from twinpod.api.types import DatasetSpec\nfrom twinpod.sampling.datasets import open_dataset\n"
        f"fields = {{'reasoningGym': {{'name': '{name}'}}, 'size': 20, 'heldOut': 4}}\n"
        "print([(i.prompt, i.answer, i.key) for i in open_dataset(DatasetSpec.model_validate(fields), 3).items])\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    data = DatasetSpec.model_validate({"reasoningGym": {"name": name}, "size": 20, "heldOut": 4})
    dataset = open_dataset(data, 3)
    assert told[0].strip() == str([(one.prompt, one.answer, one.key) for one in dataset.items])

    async def scores() -> list[float]:
        judges = JudgePool(
            JudgeSetup(reward=RewardSpec(kind="dataset"), dataset=data, seed=3),
            dataset.keys(dataset.parts()),
            at_once=1,
            within_s=60,
        )
        try:
            return [
                (await judges.score(prompt(number), dataset.items[place].answer)).reward
                for number, place in enumerate(dataset.parts().training)
            ]
        finally:
            await asyncio.to_thread(judges.close)

    assert set(asyncio.run(scores())) == {1.0}

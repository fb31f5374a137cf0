"""What an answer is worth."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from twinpod.api.types import RewardSpec
from twinpod.errors import InputError
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt
from twinpod.reward.choose import choose
from twinpod.reward.port import RewardPort, Verdict, verdict_of
from twinpod.reward.prefix import prefix_share


def prompt(answer: str) -> Prompt:
    return Prompt(prompt_id=3, text="?", answer=answer, difficulty=0.0, tokens=TokenIds((2,)))


PREFIX = [
    ("edcba", 1.0),
    ("", 0.0),
    ("e", 1 / 5),
    ("ed", 2 / 5),
    ("edxba", 2 / 5),
    ("xdcba", 0.0),
    ("edcbaa", 5 / 6),
    ("edcbaedcba", 5 / 10),
    ("edxxxxxxxx", 2 / 10),
    ("Edcba", 0.0),
]


@pytest.mark.parametrize(("text", "share"), PREFIX)
def test_prefix_is_the_correct_beginning_over_the_longer_of_the_two(text, share):
    assert prefix_share("edcba", text) == pytest.approx(share)


def test_only_the_right_answer_is_correct_and_worth_one():
    port = choose(RewardSpec(kind="prefix"), None)
    assert port.score(prompt("cba"), "cba") == Verdict(reward=1.0, correct=True)
    assert [port.score(prompt("cba"), text).correct for text in ("cb", "cbaa", " cba")] == [False] * 3
    assert prefix_share("", "") == 1.0


@pytest.mark.parametrize(("text", "right"), [("42", True), (" 42\n", True), ("43", False), ("4 2", False), ("", False)])
def test_exact_is_all_or_nothing(text, right):
    assert choose(RewardSpec(kind="exact"), None).score(prompt("42"), text) == Verdict(
        reward=float(right), correct=right
    )


class Score:
    """A data set's own verifier."""

    def __init__(self, answer: object) -> None:
        self.answer, self.asked = answer, []

    def score(self, prompt_id: int, text: str) -> float:
        self.asked.append((prompt_id, text))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "verdict"), [(1.0, (1.0, True)), (0.4, (0.4, False)), (1, (1.0, True)), (0, (0.0, False))]
)
def test_dataset_asks_the_data_set_itself(answer, verdict):
    verifier = Score(answer)
    got = choose(RewardSpec(kind="dataset"), verifier).score(prompt("x"), "nus")
    assert (got.reward, got.correct, got.error) == (*verdict, "")
    assert verifier.asked == [(3, "nus")]


@pytest.mark.parametrize("answer", [ZeroDivisionError("by zero"), math.nan, math.inf, "much"])
def test_an_error_while_scoring_masks_the_sample_and_is_never_a_zero(answer):
    got = choose(RewardSpec(kind="dataset"), Score(answer)).score(prompt("x"), "y")
    assert got.error.startswith("verifier: ")
    assert not got.correct


def short(prompt: Prompt, text: str) -> float:
    return 1 - len(text) / 10


def broken(prompt: Prompt, text: str) -> float:
    raise KeyError(text)


def verdict(prompt: Prompt, text: str) -> Verdict:
    return Verdict(reward=0.5, correct=True)


class Unspeakable:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise ValueError("no")


COERCED = [
    (Verdict(reward=np.float32(1), correct=np.bool_(True)), (1.0, True)),
    (Verdict(reward=np.float64(0.5), correct=np.int64(0)), (0.5, False)),
    (np.float16(0.5), (0.5, False)),
    (np.int32(2), (2.0, True)),
    (np.array(0.25), (0.25, False)),
    (Fraction(1, 2), (0.5, False)),
    (True, (1.0, True)),
    (0, (0.0, False)),
    (Verdict(reward=-3, correct=None), (-3.0, False)),  # type: ignore[arg-type]
]
MASKED = [
    ("1", "answered '1', which is no number"),
    (None, "answered None, which is no number"),
    (b"1", "answered b'1', which is no number"),
    (math.nan, "answered nan"),
    (-math.inf, "answered -inf"),
    (np.float32("nan"), "answered nan"),
    ([1.0], r"answered \[1.0\], which is no number"),
    (10**400, "which is no number"),
    (Verdict(reward="1", correct=True), "answered '1', which is no number"),  # type: ignore[arg-type]
    (Verdict(reward=1.0, correct="no"), "says that the answer is right: 'no'; that is neither true nor false"),  # type: ignore[arg-type]
    (Verdict(reward=1.0, correct=2), "says that the answer is right: 2"),  # type: ignore[arg-type]
    (Verdict(reward=1.0, correct=True, error=KeyError("x")), "KeyError|'x'"),  # type: ignore[arg-type]
    (Verdict(reward=1.0, correct=True, error="y" * 100_000), "y{1000}$"),
]


@pytest.mark.parametrize(("answer", "seen"), COERCED)
def test_numbers_and_truths_of_any_kind_count_and_are_python_s_own_afterwards(answer, seen):
    got = verdict_of(answer, "r")
    assert (got.reward, got.correct, got.error) == (*seen, "")
    assert (type(got.reward), type(got.correct)) == (float, bool)


@pytest.mark.parametrize(("answer", "why"), MASKED)
def test_what_is_no_number_masks_the_sample_with_its_reason(answer, why):
    got = verdict_of(answer, "r")
    assert re.search(why, got.error)
    assert not got.correct
    assert len(got.error) <= 1000
    json.dumps([got.reward, got.correct, got.error])


def unspeakable(prompt: Prompt, text: str) -> object:
    return Unspeakable()


def entry(name: str) -> RewardPort:
    return choose(RewardSpec(kind="entryPoint", target=f"{__name__}:{name}"), None)


def test_an_entry_point_answers_a_number_or_a_verdict(monkeypatch, request):
    import sys

    monkeypatch.setitem(sys.modules, __name__, request.module)
    assert entry("short").score(prompt("x"), "ab") == Verdict(reward=0.8, correct=False)
    assert entry("short").score(prompt("x"), "") == Verdict(reward=1.0, correct=True)
    assert entry("verdict").score(prompt("x"), "") == Verdict(reward=0.5, correct=True)
    assert "KeyError" in entry("broken").score(prompt("x"), "ab").error
    assert "ValueError: no" in entry("unspeakable").score(prompt("x"), "ab").error


REFUSED = [
    (RewardSpec(kind="dataset"), "reward.kind: .*no score of its own"),
    (RewardSpec.model_construct(kind="entryPoint", target=None), "reward.target: is missing"),
    (RewardSpec(kind="entryPoint", target="no_such_package.x:f"), "reward.target: .*no_such_package"),
    (RewardSpec(kind="entryPoint", target="json:dump_all"), "reward.target: json has no function 'dump_all'"),
]


@pytest.mark.parametrize(("spec", "line"), REFUSED)
def test_a_reward_that_cannot_be_is_refused_in_one_line(spec, line):
    with pytest.raises(InputError, match=line):
        choose(spec, None)

"""What an answer is worth."""

from __future__ import annotations

import math

import pytest

from twinpod.api.types import RewardSpec
from twinpod.errors import InputError
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt
from twinpod.reward.choose import choose
from twinpod.reward.port import RewardPort, Verdict
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


def entry(name: str) -> RewardPort:
    return choose(RewardSpec(kind="entryPoint", target=f"{__name__}:{name}"), None)


def test_an_entry_point_answers_a_number_or_a_verdict(monkeypatch, request):
    import sys

    monkeypatch.setitem(sys.modules, __name__, request.module)
    assert entry("short").score(prompt("x"), "ab") == Verdict(reward=0.8, correct=False)
    assert entry("short").score(prompt("x"), "") == Verdict(reward=1.0, correct=True)
    assert entry("verdict").score(prompt("x"), "") == Verdict(reward=0.5, correct=True)
    assert "KeyError" in entry("broken").score(prompt("x"), "ab").error


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

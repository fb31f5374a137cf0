"""Work items to engine requests, engine outputs to segments."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import EngineFault, ProtocolError, WrongVersion
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.rollout import Resumption, SamplingSettings, Stop, WorkItem
from twinpod.rollout import plan
from twinpod.rollout.ports import EngineOutput, Finish
from twinpod.rollout.repeat import find

EOS = 1
SETTINGS = SamplingSettings(
    temperature=0.7, top_p=0.9, segment_tokens=4, max_tokens=6, stop_token_ids=(EOS,), repeat_ngram=0, repeat_count=0
)


def item(*done: tuple[int, ...], **changes: object) -> WorkItem:
    trajectories = tuple(
        Resumption(trajectory_id=10 + n, index=int(bool(t)), tokens=TokenIds(t)) for n, t in enumerate(done)
    )
    return WorkItem(
        item_id="1/2/3",
        group_id=5,
        version=7,
        prompt_tokens=TokenIds((40, 41)),
        trajectories=trajectories,
        sampling=replace(SETTINGS, **changes),
        seed=0,
    )


def output(tokens: tuple[int, ...], finish: Finish, version: int = 7) -> EngineOutput:
    return EngineOutput(
        name="1/2/3#0;", tokens=TokenIds(tokens), logps=LogProbs([-t for t in tokens]), finish=finish, version=version
    )


def test_a_fresh_group_is_one_request_a_trajectory_with_the_same_prompt():
    requests = plan.requests(item((), ()))
    assert [r.name for r in requests] == ["1/2/3#0;", "1/2/3#1;"]
    assert {r.tokens for r in requests} == {TokenIds((40, 41))}
    assert {(r.max_new_tokens, r.temperature, r.top_p, r.stop_token_ids) for r in requests} == {(4, 0.7, 0.9, (EOS,))}


def test_a_trajectory_draws_by_a_seed_of_its_own_in_whatever_item_it_comes():
    together, alone = plan.requests(item((), ())), plan.requests(replace(item((), ()), item_id="1/9/9"))
    assert [r.seed for r in together] == [r.seed for r in alone]
    seeds = {plan.draw_seed(seed, one) for seed in range(10) for one in range(-50, 1000)}
    assert len(seeds) == 10 * 1050
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_resumed_trajectory_goes_on_from_what_it_has_with_what_is_left():
    (request,) = plan.requests(item((8, 9, 8, 9)))
    assert (tuple(request.tokens), request.max_new_tokens) == ((40, 41, 8, 9, 8, 9), 2)


def test_no_name_is_the_beginning_of_another():
    names = [plan.request_name(item(), place) for place in range(120)]
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


def test_running_outputs_are_a_sign_of_life_but_no_flood():
    assert plan.requests(item(()))[0].report_every == plan.CHECK_EVERY
    assert plan.requests(item((), segment_tokens=131_072, max_tokens=131_072))[0].report_every == 2048


STOPS = [
    # done before, new tokens, finish -> stop
    ("a stop token ends the answer", (), (5, EOS), Finish.STOP, Stop.EOS),
    ("a stop token as the last one allowed", (5, 5, 5, 5), (5, EOS), Finish.STOP, Stop.EOS),
    ("segmentTokens reached: it goes on later", (), (5, 6, 7, 8), Finish.LENGTH, Stop.BUDGET),
    ("maxTokens reached", (5, 6, 7, 8), (9, 5), Finish.LENGTH, Stop.LENGTH),
    ("clipped by the engine, which has no room for more", (), (5, 6), Finish.LENGTH, Stop.LENGTH),
    ("cut with tokens", (), (5,), Finish.ABORT, Stop.CUT),
    ("cut in the moment in which it had its budget", (), (5, 6, 7, 8), Finish.ABORT, Stop.BUDGET),
    ("cut in the moment in which it had all", (5, 6, 7, 8), (9, 5), Finish.ABORT, Stop.LENGTH),
]


@pytest.mark.parametrize(
    ("done", "tokens", "finish", "stop"), [row[1:] for row in STOPS], ids=[row[0] for row in STOPS]
)
def test_why_a_segment_ended(done, tokens, finish, stop):
    segment = plan.segment(item(done), 0, output(tokens, finish), "pod-a")
    assert segment is not None
    assert (segment.stop, tuple(segment.tokens), tuple(segment.logps)) == (stop, tokens, tuple(-t for t in tokens))
    assert (segment.trajectory_id, segment.index, segment.version, segment.pod) == (10, int(bool(done)), 7, "pod-a")


def test_an_answer_cut_before_its_first_token_leaves_nothing_to_store():
    assert plan.segment(item(()), 0, output((), Finish.ABORT, version=3), "p") is None


REPEATS = [
    ("cut at the first repeat", (), (5, 6, 5, 6), (5, 6, 5, 6)),
    ("nothing after it is kept", (), (7, 7, 7, 7), (7, 7, 7, 7)),
    ("found across segments", (5, 6, 5), (6, 5), (6,)),
]


@pytest.mark.parametrize(("done", "tokens", "kept"), [row[1:] for row in REPEATS], ids=[row[0] for row in REPEATS])
def test_a_repeat_ends_the_answer_whatever_the_engine_saw(done, tokens, kept):
    work = item(done, repeat_ngram=2, repeat_count=2)
    segment = plan.segment(work, 0, output(tokens, Finish.ABORT), "p")
    assert segment is not None
    assert (segment.stop, tuple(segment.tokens), len(segment.logps)) == (Stop.REPEAT, kept, len(kept))


def test_a_repeat_before_the_stop_token_wins_over_it():
    work = item((), repeat_ngram=1, repeat_count=3)
    segment = plan.segment(work, 0, output((5, 5, 5, EOS), Finish.STOP), "p")
    assert segment is not None
    assert (segment.stop, tuple(segment.tokens)) == (Stop.REPEAT, (5, 5, 5))


REFUSED = [
    ("other weights", output((5, EOS), Finish.STOP, version=6), WrongVersion, "asked for weights 7, answered by 6"),
    ("several weights", output((5, EOS), Finish.STOP, version=-1), WrongVersion, "asked for weights 7"),
    ("more tokens than asked for", output((5, 5, 5, 5, 5), Finish.LENGTH), ProtocolError, "more than asked for"),
    ("a stop without a stop token", output((5, 5), Finish.STOP), ProtocolError, "no stop token"),
    ("log-probs missing", replace(output((5, EOS), Finish.STOP), logps=LogProbs((0.0,))), ProtocolError, "1 log-probs"),
    ("nan", replace(output((5, EOS), Finish.STOP), logps=LogProbs((0.0, math.nan))), EngineFault, "of token 1 is nan"),
    (
        "-inf",
        replace(output((5, 6), Finish.ABORT), logps=LogProbs((-math.inf, 0.0))),
        EngineFault,
        "of token 0 is -inf",
    ),
    ("an engine's refusal", replace(output((), Finish.FAILED), message="too long"), EngineFault, "too long"),
]


@pytest.mark.parametrize(("answer", "kind", "line"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_answer_that_breaks_the_contract_is_no_segment(answer, kind, line):
    with pytest.raises(kind, match=line):
        plan.segment(item(()), 0, answer, "p")


def test_an_item_is_refused_before_it_costs_anything():
    assert plan.refusal(item(()), 7) == ""
    assert plan.refusal(item(()), 8) == "wants weights 7, the engine serves 8"
    assert "[11]" in plan.refusal(item((), (5,) * 6), 7)
    assert "empty prompt" in plan.refusal(replace(item(()), prompt_tokens=TokenIds()), 7)


@given(
    before=st.lists(st.integers(5, 6), max_size=12),
    tokens=st.lists(st.integers(5, 6), max_size=12),
    seen=st.integers(0, 12),
)
def test_looking_again_from_where_one_looked_before_finds_the_same_repeat(before, tokens, seen):
    work = item(tuple(before), repeat_ngram=2, repeat_count=3)
    whole = find(TokenIds((*before, *tokens)), ngram=2, count=3, since=len(before) + seen)
    assert plan.repeats(work, 0, TokenIds(tokens), seen) == (whole and whole.end - len(before))

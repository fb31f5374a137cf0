"""The training half's machine: tables of states, events and acts."""

from __future__ import annotations

import pytest

from twinpod.errors import EXIT_INPUT
from twinpod.records.life import Reply, Verb
from twinpod.testing.halves import order
from twinpod_sidecar.relay import (
    EXIT_GRACE_S,
    Act,
    Answer,
    Asked,
    AskOver,
    End,
    Event,
    Expired,
    Give,
    Ordered,
    RanksEnded,
    Reported,
    State,
    StopRanks,
    Terminate,
    step,
)

TRAIN, PUBLISH, EXIT = order(Verb.TRAIN), order(Verb.PUBLISH), order(Verb.EXIT)
TRAINED = Reply(key=TRAIN.key, error="", retryable=False, seconds=1.0, detail="{}")


def play(*events: Event) -> tuple[State, list[Act]]:
    state, done = State(), list[Act]()
    for event in events:
        state, acts = step(state, event)
        done.extend(acts)
    return state, done


def test_a_command_waits_for_rank_0_to_ask() -> None:
    assert play(Ordered(TRAIN))[1] == []
    assert play(Ordered(TRAIN), Asked())[1] == [Give(TRAIN)]


def test_rank_0_waits_for_a_command() -> None:
    assert play(Asked(), Ordered(TRAIN))[1] == [Give(TRAIN)]


def test_a_command_that_comes_after_an_ask_is_over_waits_for_the_next() -> None:
    assert play(Asked(), AskOver(), Ordered(TRAIN))[1] == []


def test_commands_are_given_one_at_a_time_in_order() -> None:
    _, acts = play(Asked(), Ordered(TRAIN), Ordered(PUBLISH), Reported(TRAINED), Asked())
    assert acts == [Give(TRAIN), Answer(TRAIN.key, detail="{}"), Give(PUBLISH)]


def test_ranks_that_found_the_input_wrong_end_the_half_with_their_line_and_nobody_tries_again() -> None:
    state, acts = play(Asked(), Ordered(TRAIN), RanksEnded("trainer exited with code 1", "config.json: is wrong"))
    assert acts[1:] == [Answer(TRAIN.key, "InputError: config.json: is wrong"), End(EXIT_INPUT)]
    assert state.message == "InputError: config.json: is wrong"


def test_a_lost_answer_to_an_ask_is_given_again() -> None:
    assert play(Asked(), Ordered(TRAIN), Asked())[1] == [Give(TRAIN), Give(TRAIN)]


@pytest.mark.parametrize("before", [(), (Ordered(TRAIN),)], ids=["nothing", "another"])
def test_a_report_that_nobody_waits_for_changes_nothing(before: tuple[Event, ...]) -> None:
    assert play(*before, Reported(TRAINED))[1] == []


def test_ranks_that_end_by_themselves_end_the_half_and_answer_everyone() -> None:
    _, acts = play(Asked(), Ordered(TRAIN), Ordered(PUBLISH), RanksEnded("trainer was killed by SIGKILL"))
    error = "EngineFault: the ranks ended without being told to: trainer was killed by SIGKILL"
    assert acts[1:] == [Answer(TRAIN.key, error, True), Answer(PUBLISH.key, error, True), End(1)]


def test_a_half_that_follows_refuses_commands_and_names_the_leader() -> None:
    _, acts = step(State(leader="j-hybrid-0"), Ordered(TRAIN))
    assert acts == (Answer(TRAIN.key, "ProtocolError: train: the ranks of this pod follow rank 0 in j-hybrid-0"),)


def test_a_half_that_follows_gives_its_ranks_time_to_end_by_the_word_of_rank_0() -> None:
    state, acts = step(State(leader="j-hybrid-0"), Ordered(EXIT))
    assert acts == (StopRanks(EXIT_GRACE_S),)
    assert step(state, RanksEnded("done"))[1] == (Answer(EXIT.key), End(0))


def test_a_command_that_overruns_its_deadline_ends_the_ranks() -> None:
    state, acts = play(Asked(), Ordered(TRAIN), Expired(TRAIN.key), RanksEnded("x"))
    error = "EngineFault: train not done within 60 s: the ranks are stuck and are started anew"
    assert acts[1:] == [Answer(TRAIN.key, error, True), StopRanks(0.0), End(1)]
    assert state.queue == ()


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ((), "the ranks are not up yet"),
        ((Asked(), AskOver()), "rank 0 does not ask for work"),
        ((Asked(), Ordered(PUBLISH)), f"the ranks are busy with {PUBLISH.key}"),
    ],
)
def test_a_command_that_was_never_given_says_why(before: tuple[Event, ...], why: str) -> None:
    _, acts = play(*before, Ordered(TRAIN), Expired(TRAIN.key))
    assert acts[-1] == Answer(TRAIN.key, f"Unreachable: train not done within 60 s: {why}", True)


def test_exit_is_given_to_ranks_that_ask_and_ends_the_half_when_they_are_gone() -> None:
    _, acts = play(Asked(), Ordered(EXIT), RanksEnded("trainer exited with code 0"))
    assert acts == [Give(EXIT), StopRanks(EXIT_GRACE_S), Answer(EXIT.key), End(0)]


def test_exit_does_not_wait_for_ranks_that_are_busy() -> None:
    _, acts = play(Asked(), Ordered(TRAIN), Ordered(EXIT), RanksEnded("x"))
    told = Answer(TRAIN.key, f"EngineFault: gave way to {EXIT.key}", True)
    assert acts == [Give(TRAIN), told, StopRanks(0.0), Answer(EXIT.key), End(0)]


def test_sigterm_answers_everyone_and_ends_with_0() -> None:
    _, acts = play(Ordered(TRAIN), Terminate(), Ordered(PUBLISH), RanksEnded("x"))
    assert acts == [
        Answer(TRAIN.key, "EngineFault: the half was told to end", True),
        StopRanks(0.0),
        Answer(PUBLISH.key, "EngineFault: the half is ending", True),
        End(0),
    ]


@pytest.mark.parametrize("verb", [Verb.PREPARE, Verb.SERVE, Verb.REST])
def test_an_inference_verb_is_refused(verb: Verb) -> None:
    command = order(verb)
    assert play(Ordered(command))[1] == [
        Answer(command.key, f"ProtocolError: a training half does not know {verb.value}")
    ]

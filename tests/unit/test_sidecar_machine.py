"""The inference half's machine: tables of states, events and acts; and that no order of events breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpod.records.life import Command, EngineState, LifeCycle, Verb
from twinpod.testing.halves import order
from twinpod_sidecar.machine import GIVE_UP, pause, step
from twinpod_sidecar.nouns import (
    AbortAll,
    Act,
    Announce,
    Answer,
    Disproved,
    End,
    EngineAsleep,
    EngineDied,
    EngineFaulty,
    EngineGone,
    EngineUp,
    Event,
    Expired,
    Goal,
    Load,
    Loaded,
    Ordered,
    Proof,
    Prove,
    Proved,
    ReleaseEngine,
    Stage,
    Staged,
    StageShards,
    StagingFailed,
    StandbyDied,
    StandbyReady,
    StartEngine,
    StartStandby,
    State,
    StopEngine,
    StopStaging,
    Terminate,
    WakeEngine,
    Weights,
    Withdraw,
)

ONE, TWO = Weights(version=1, digest="a"), Weights(version=2, digest="b")
PREPARE, SERVE, REST, EXIT = (order(verb) for verb in (Verb.PREPARE, Verb.SERVE, Verb.REST, Verb.EXIT))
SERVE_TWO = order(Verb.SERVE, 2)
RESTART, SLEEP, KEEP = LifeCycle.RESTART, LifeCycle.SLEEP, LifeCycle.KEEP


def state_in(engine: EngineState, life: LifeCycle = RESTART, **more: object) -> State:
    """A state with an engine of run 1 there, its goal fitting, a ready standby."""
    goal = {
        EngineState.NONE: Goal.REST,
        EngineState.STOPPING: Goal.REST,
        EngineState.ASLEEP: Goal.REST,
        EngineState.STARTING: Goal.PREPARED,
        EngineState.IDLE: Goal.PREPARED,
        EngineState.LOADING: Goal.SERVING,
        EngineState.SERVING: Goal.SERVING,
    }[engine]
    served = goal is Goal.SERVING
    base = State(
        life=life,
        goal=goal,
        engine=engine,
        run=1,
        standby=True,
        wanted=ONE if served else None,
        proof=Proof.DONE if served else Proof.NONE,
        loaded=ONE if engine is EngineState.SERVING else None,
    )
    return replace(base, **more)  # type: ignore[arg-type]


AWAY = Ordered(SERVE, ONE, True)


def staging(engine: EngineState) -> State:
    """A state in which ONE is being fetched."""
    return state_in(engine, goal=Goal.SERVING, wanted=ONE, stage=Stage.RUNNING, proof=Proof.NONE)


def play(state: State, *events: Event) -> tuple[State, list[Act]]:
    done: list[Act] = []
    for event in events:
        state, acts = step(state, event)
        done.extend(acts)
    return state, done


E = EngineState
ROWS: list[tuple[str, State, Event, EngineState, list[Act]]] = [
    ("prepare starts", state_in(E.NONE), Ordered(PREPARE), E.STARTING, [StartEngine(2, 0.0)]),
    ("prepare waits for the standby", state_in(E.NONE, standby=False), Ordered(PREPARE), E.NONE, []),
    ("prepare joins a start", state_in(E.STARTING), Ordered(PREPARE), E.STARTING, []),
    ("prepare is done when idle", state_in(E.IDLE), Ordered(PREPARE), E.IDLE, [Answer(PREPARE)]),
    ("prepare is done when serving", state_in(E.SERVING), Ordered(PREPARE), E.SERVING, [Answer(PREPARE)]),
    ("prepare is done when loading", state_in(E.LOADING), Ordered(PREPARE), E.LOADING, [Answer(PREPARE)]),
    ("prepare waits for a kill", state_in(E.STOPPING), Ordered(PREPARE), E.STOPPING, []),
    ("prepare wakes", state_in(E.ASLEEP, SLEEP), Ordered(PREPARE), E.STARTING, [WakeEngine(1)]),
    ("serve starts and proves", state_in(E.NONE), Ordered(SERVE, ONE), E.STARTING, [StartEngine(2, 0.0), Prove(ONE)]),
    ("serve proves during a start", state_in(E.STARTING), Ordered(SERVE, ONE), E.STARTING, [Prove(ONE)]),
    ("serve proves before it loads", state_in(E.IDLE), Ordered(SERVE, ONE), E.IDLE, [Prove(ONE)]),
    ("serve of the same is done", state_in(E.SERVING), Ordered(SERVE, ONE), E.SERVING, [Answer(SERVE)]),
    ("serve joins the same load", state_in(E.LOADING), Ordered(SERVE, ONE), E.LOADING, []),
    ("serve of another proves first", state_in(E.SERVING), Ordered(SERVE, TWO), E.SERVING, [Prove(TWO)]),
    ("serve stages what is away first", state_in(E.IDLE), AWAY, E.IDLE, [StageShards(ONE)]),
    ("serve stages beside a start", state_in(E.NONE), AWAY, E.STARTING, [StartEngine(2, 0.0), StageShards(ONE)]),
    ("what is staged is proved", staging(E.IDLE), Staged(ONE), E.IDLE, [Prove(ONE)]),
    ("a staging of others is not heard", staging(E.IDLE), Staged(TWO), E.IDLE, []),
    ("a failed staging of others is not heard", staging(E.IDLE), StagingFailed(TWO, "x"), E.IDLE, []),
    ("a staging that is over is not heard again", state_in(E.SERVING), Staged(ONE), E.SERVING, []),
    ("an order to prepare lets a staging be", staging(E.IDLE), Ordered(PREPARE), E.IDLE, [Answer(PREPARE)]),
    ("the same order lets a staging be", staging(E.IDLE), Ordered(SERVE, ONE, True), E.IDLE, []),
    ("an engine that dies lets a staging be", staging(E.STARTING), EngineDied(1, "x"), E.STARTING, [StartEngine(2, 0)]),
    ("rest cuts a staging", staging(E.NONE), Ordered(REST), E.NONE, [Answer(REST), StopStaging()]),
    ("exit cuts a staging", staging(E.NONE), Ordered(EXIT), E.NONE, [Answer(EXIT), StopStaging(), End()]),
    ("sigterm cuts a staging", staging(E.NONE), Terminate(), E.NONE, [StopStaging(), End()]),
    (
        "a newer order cuts a staging",
        staging(E.IDLE),
        Ordered(SERVE_TWO, TWO, True),
        E.IDLE,
        [StopStaging(), StageShards(TWO)],
    ),
    (
        "a newer order whose shards are here cuts a staging",
        staging(E.IDLE),
        Ordered(SERVE_TWO, TWO),
        E.IDLE,
        [StopStaging(), Prove(TWO)],
    ),
    ("serve waits for a kill", state_in(E.STOPPING), Ordered(SERVE, ONE), E.STOPPING, [Prove(ONE)]),
    ("serve wakes", state_in(E.ASLEEP, SLEEP), Ordered(SERVE, ONE), E.STARTING, [WakeEngine(1), Prove(ONE)]),
    ("rest without engine", state_in(E.NONE), Ordered(REST), E.NONE, [Answer(REST)]),
    ("rest kills a start", state_in(E.STARTING), Ordered(REST), E.STOPPING, [StopEngine(1)]),
    ("rest kills an idle one", state_in(E.IDLE), Ordered(REST), E.STOPPING, [StopEngine(1)]),
    ("rest kills a load", state_in(E.LOADING), Ordered(REST), E.STOPPING, [StopEngine(1)]),
    ("rest withdraws and kills", state_in(E.SERVING), Ordered(REST), E.STOPPING, [Withdraw(), StopEngine(1)]),
    ("rest waits for a kill", state_in(E.STOPPING), Ordered(REST), E.STOPPING, []),
    ("rest keeps", state_in(E.SERVING, KEEP), Ordered(REST), E.IDLE, [Withdraw(), AbortAll(1), Answer(REST)]),
    ("rest releases", state_in(E.SERVING, SLEEP), Ordered(REST), E.STOPPING, [Withdraw(), ReleaseEngine(1)]),
    ("rest releases an idle one", state_in(E.IDLE, SLEEP), Ordered(REST), E.STOPPING, [ReleaseEngine(1)]),
    ("rest lets a load end before release", state_in(E.LOADING, SLEEP), Ordered(REST), E.LOADING, []),
    ("rest when asleep", state_in(E.ASLEEP, SLEEP), Ordered(REST), E.ASLEEP, [Answer(REST)]),
    ("exit without engine", state_in(E.NONE), Ordered(EXIT), E.NONE, [Answer(EXIT), End()]),
    ("exit kills", state_in(E.SERVING), Ordered(EXIT), E.STOPPING, [Withdraw(), StopEngine(1)]),
    ("exit kills a kept one", state_in(E.IDLE, KEEP), Ordered(EXIT), E.STOPPING, [StopEngine(1)]),
    ("sigterm kills", state_in(E.LOADING), Terminate(), E.STOPPING, [StopEngine(1)]),
    ("a healthy engine is idle", state_in(E.STARTING), EngineUp(1), E.IDLE, []),
    ("an older engine is not heard", state_in(E.STARTING), EngineUp(0), E.STARTING, []),
    (
        "a load begins when proved",
        state_in(E.IDLE, goal=Goal.SERVING, wanted=ONE),
        Proved(ONE),
        E.LOADING,
        [Load(1, ONE)],
    ),
    ("a proof of other weights is not heard", state_in(E.IDLE), Proved(TWO), E.IDLE, []),
    ("loaded is announced", state_in(E.LOADING), Loaded(1, ONE), E.SERVING, [Announce(ONE)]),
    ("loaded by an older engine is not heard", state_in(E.LOADING), Loaded(0, ONE), E.LOADING, []),
    (
        "a death while serving",
        state_in(E.SERVING),
        EngineDied(1, "x"),
        E.STARTING,
        [Withdraw(), StartEngine(2, 0.0), Prove(ONE)],
    ),
    ("a death while starting", state_in(E.STARTING), EngineDied(1, "x"), E.STARTING, [StartEngine(2, 0.0)]),
    ("a death while idle", state_in(E.IDLE), EngineDied(1, "x"), E.STARTING, [StartEngine(2, 0.0)]),
    ("a death while stopping", state_in(E.STOPPING), EngineDied(1, "x"), E.NONE, []),
    ("a death while asleep", state_in(E.ASLEEP, SLEEP), EngineDied(1, "x"), E.NONE, []),
    ("a fault while loading", state_in(E.LOADING), EngineFaulty(1, "x"), E.STOPPING, [StopEngine(1)]),
    ("a fault while releasing", state_in(E.STOPPING, SLEEP), EngineFaulty(1, "x"), E.STOPPING, [StopEngine(1)]),
    ("a fault after the kill", state_in(E.STOPPING), EngineFaulty(1, "x"), E.STOPPING, []),
    ("asleep", state_in(E.STOPPING, SLEEP), EngineAsleep(1), E.ASLEEP, []),
    ("gone", state_in(E.STOPPING), EngineGone(1), E.NONE, []),
    ("the standby dies alone", state_in(E.NONE), StandbyDied("x"), E.NONE, [StartStandby(0.0)]),
    (
        "the standby takes all",
        state_in(E.SERVING),
        StandbyDied("x"),
        E.NONE,
        [Withdraw(), StartStandby(0.0), Prove(ONE)],
    ),
    ("the standby dies at the end", state_in(E.STOPPING, goal=Goal.EXIT), StandbyDied("x"), E.NONE, [End()]),
    (
        "the standby is ready",
        state_in(E.NONE, standby=False, goal=Goal.PREPARED),
        StandbyReady(),
        E.STARTING,
        [StartEngine(2, 0.0)],
    ),
]


@pytest.mark.parametrize(("state", "event", "engine", "acts"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_event_has_its_acts(state: State, event: Event, engine: EngineState, acts: list[Act]) -> None:
    after, found = step(state, event)
    assert (after.engine, list(found)) == (engine, acts)


@pytest.mark.parametrize(
    "verb", [verb for verb in Verb if verb not in (Verb.PREPARE, Verb.SERVE, Verb.REST, Verb.EXIT)]
)
@pytest.mark.parametrize("engine", EngineState)
def test_a_training_verb_is_refused_in_any_state(verb: Verb, engine: EngineState) -> None:
    state = state_in(engine, SLEEP if engine is EngineState.ASLEEP else RESTART)
    after, acts = step(state, Ordered(order(verb)))
    assert after == state
    assert acts == (Answer(order(verb), f"ProtocolError: an inference half does not know {verb.value}"),)


def test_serve_is_answered_once_announced() -> None:
    state, acts = play(state_in(E.IDLE), Ordered(SERVE, ONE), Proved(ONE), Loaded(1, ONE))
    assert acts == [Prove(ONE), Load(1, ONE), Announce(ONE), Answer(SERVE)]
    assert state.pending == ()


def test_a_lie_is_told_to_the_one_who_asked_and_the_engine_stays_without() -> None:
    state, acts = play(state_in(E.IDLE), Ordered(SERVE, ONE), Disproved(ONE, "IntegrityError: x"))
    assert acts == [Prove(ONE), Answer(SERVE, "IntegrityError: x")]
    assert (state.engine, state.goal, state.wanted) == (E.IDLE, Goal.PREPARED, None)


def test_a_lie_withdraws_the_older_version_too() -> None:
    state, acts = play(state_in(E.SERVING), Ordered(SERVE_TWO, TWO), Disproved(TWO, "IntegrityError: x"))
    assert acts == [Prove(TWO), Withdraw(), Answer(SERVE_TWO, "IntegrityError: x")]
    assert state.engine is E.IDLE


def test_a_newer_serve_supersedes_an_older_one() -> None:
    state, acts = play(state_in(E.IDLE), Ordered(SERVE, ONE), Ordered(SERVE_TWO, TWO), Proved(ONE), Proved(TWO))
    assert Answer(SERVE, f"EngineFault: gave way to {SERVE_TWO.key}", retryable=True) in acts
    assert acts[-1] == Load(1, TWO)
    assert state.pending == (SERVE_TWO,)


def test_weights_loaded_for_a_superseded_serve_are_not_announced() -> None:
    _, acts = play(state_in(E.LOADING), Ordered(SERVE_TWO, TWO), Loaded(1, ONE), Proved(TWO), Loaded(1, TWO))
    assert acts == [Prove(TWO), Load(1, TWO), Announce(TWO), Answer(SERVE_TWO)]


def test_a_restart_proves_again_before_it_loads() -> None:
    state, acts = play(state_in(E.SERVING), EngineDied(1, "x"), EngineUp(2))
    assert Load(2, ONE) not in acts
    _, acts = play(state, Proved(ONE))
    assert acts == [Load(2, ONE)]


def test_a_newer_epoch_answers_the_older_ones_commands() -> None:
    newer = order(Verb.PREPARE, epoch=2)
    state, acts = play(state_in(E.STARTING), Ordered(PREPARE), Ordered(newer))
    assert [act.error[:10] for act in acts if isinstance(act, Answer)] == ["StaleEpoch"]
    assert state.pending == (newer,)


def test_those_who_wait_hear_of_it_after_some_failures_in_a_row() -> None:
    state, acts = play(state_in(E.NONE), Ordered(PREPARE))
    for run in range(2, 2 + GIVE_UP):
        state, more = step(state, EngineDied(run, f"death {run}"))
        acts.extend(more)
    assert [act.pause_s for act in acts if isinstance(act, StartEngine)] == [0.0, 0.0, 1.0]
    assert acts[-1] == Answer(PREPARE, f"EngineFault: death {1 + GIVE_UP}", retryable=True)
    assert (state.goal, state.attempt) == (Goal.REST, GIVE_UP)


def test_an_engine_that_nobody_waits_for_is_tried_for_ever_ever_more_slowly() -> None:
    state = state_in(E.SERVING)
    for run in range(1, 20):
        state, acts = step(state, EngineDied(run, "x"))
    assert acts == (StartEngine(20, 30.0), Prove(ONE))


def test_a_staging_that_fails_is_the_answer_and_nothing_older_is_served_meanwhile() -> None:
    state, acts = play(state_in(E.SERVING), Ordered(SERVE_TWO, TWO, True), StagingFailed(TWO, "Unreachable: x"))
    assert acts == [StageShards(TWO), Withdraw(), Answer(SERVE_TWO, "Unreachable: x", retryable=True)]
    assert (state.engine, state.wanted) == (E.IDLE, None)
    state, acts = play(state, Ordered(order(Verb.SERVE, 3), TWO, True))
    assert acts == [StageShards(TWO)]


def test_a_staging_that_was_cut_by_rest_begins_again_with_the_next_order() -> None:
    _, acts = play(state_in(E.NONE), AWAY, Ordered(REST), EngineGone(2), Staged(ONE), AWAY)
    assert acts[-2:] == [StartEngine(3, 0.0), StageShards(ONE)]


def test_an_expired_order_says_that_its_weights_are_being_fetched() -> None:
    late = order(Verb.SERVE, deadline_s=7)
    _, acts = play(state_in(E.IDLE), Ordered(late, ONE, True), Expired(late.key))
    error = (
        "Unreachable: serve not done within 7 s; the engine is idle, its standby ready, its weights are being fetched"
    )
    assert acts[-1] == Answer(late, error, retryable=True)


def test_an_expired_command_hears_what_it_waited_for() -> None:
    late = order(Verb.PREPARE, deadline_s=7)
    _, acts = play(state_in(E.NONE, standby=False), Ordered(late), Expired(late.key))
    error = "Unreachable: prepare not done within 7 s; the engine is none, its standby still importing"
    assert acts == [Answer(late, error, retryable=True)]


def test_after_exit_nothing_is_taken_on() -> None:
    state, acts = play(state_in(E.SERVING), Ordered(EXIT), Ordered(PREPARE), EngineGone(1))
    assert acts == [
        Withdraw(),
        StopEngine(1),
        Answer(PREPARE, "EngineFault: the half is ending", retryable=True),
        Answer(EXIT),
        End(),
    ]
    assert state.pending == ()


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (6, 16), (7, 30), (99, 30)])
def test_the_pause_doubles_up_to_a_limit(failures: int, seconds: float) -> None:
    assert pause(failures) == seconds


def _events(draw: st.DrawFn, state: State, number: int) -> Event:
    run = draw(st.sampled_from([state.run, state.run, max(0, state.run - 1)]))
    weights = draw(st.sampled_from([ONE, TWO]))
    verb = draw(st.sampled_from([Verb.PREPARE, Verb.SERVE, Verb.REST]))
    command = order(verb, number)
    return draw(
        st.sampled_from(
            [
                Ordered(command, weights if verb is Verb.SERVE else None, draw(st.booleans())),
                Staged(weights),
                StagingFailed(weights, "Unreachable: x"),
                StandbyReady(),
                StandbyDied("x"),
                EngineUp(run),
                EngineAsleep(run),
                EngineFaulty(run, "x"),
                EngineDied(run, "x"),
                EngineGone(run),
                Proved(weights),
                Disproved(weights, "IntegrityError: x"),
                Loaded(run, weights),
                Expired(f"1/1/{verb.value}/{draw(st.integers(0, number))}"),
            ]
        )
    )


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(LifeCycle))
def test_any_order_of_events_answers_every_command_once_and_announces_only_what_was_proved(
    data: st.DataObject, life: LifeCycle
) -> None:
    state, answered, ordered, proved = State(life=life), [], [], set[Weights]()
    fetching = False
    for number in range(data.draw(st.integers(1, 40))):
        event = data.draw(st.composite(_events)(state, number))
        if isinstance(event, Proved) and event.weights == state.wanted:
            proved.add(event.weights)
        if isinstance(event, Ordered):
            ordered.append(event.command)
        if isinstance(event, (Staged, StagingFailed)) and event.weights == state.wanted:
            fetching = False
        loading = state.engine
        state, acts = step(state, event)
        answered += [act.command for act in acts if isinstance(act, Answer)]
        for act in acts:
            if isinstance(act, Announce):
                assert act.weights == state.wanted == state.loaded
                assert act.weights in proved
            if isinstance(act, StageShards):
                assert not fetching
                fetching = True
            if isinstance(act, StopStaging):
                assert fetching
                fetching = False
            if isinstance(act, Prove):
                assert state.stage is Stage.HERE
            if isinstance(act, Load):
                assert loading is not EngineState.LOADING
    state, acts = step(state, Terminate())
    answered += [act.command for act in acts if isinstance(act, Answer)]
    assert sorted(_keys(answered)) == sorted(_keys(ordered))


def _keys(commands: list[Command]) -> list[str]:
    return [command.key for command in commands]

"""The inference half decides here. Pure: (state, event) to (state, acts); any event has a defined answer in any state.

Theory of operation
-------------------
Commands do not start actions; they set a *goal*. After every event,
`_advance` compares the engine with the goal and gives the next acts, so a death, a late answer or a superseding
command needs no path of its own: the engine is where it is, and the way from there to the goal is the same. Weights
whose shards lie in other pods are staged first, beside the start of the engine; a staging is cut when the goal is no
more to serve, or to serve others. A command is answered when its condition is true, when it gave way to another
command, when its deadline is over, or when the way to it failed `GIVE_UP` times in a row. Events of an engine that is
no more (an older `run`) change nothing.
"""

from __future__ import annotations

from dataclasses import replace

from twinpod.records.life import Command, EngineState, LifeCycle, Verb
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
    Step,
    StopEngine,
    StopStaging,
    Terminate,
    WakeEngine,
    Withdraw,
)

GIVE_UP = 3  # failures in a row after which waiting commands are answered with the reason
LONGEST_PAUSE_S = 30.0
_ALL_BUT_EXIT = tuple(verb for verb in Verb if verb is not Verb.EXIT)


def step(state: State, event: Event) -> Step:
    """The half after `event`, and what to do now."""
    state, acts = _take(state, event)
    state, answers = _answer_done(state)
    state, moves = _advance(state)
    state, more = _answer_done(state)
    return state, (*acts, *answers, *moves, *more)


def _take(state: State, event: Event) -> Step:
    """What the event itself changes."""
    match event:
        case Ordered():
            return _order(state, event)
        case Terminate():
            return _supersede(replace(state, goal=Goal.EXIT), _ALL_BUT_EXIT, "the half was told to end")
        case StandbyReady():
            return replace(state, standby=True), ()
        case StandbyDied(reason):
            return _standby_died(state, reason)
        case Staged(weights) if weights == state.wanted and state.stage is Stage.RUNNING:
            return replace(state, stage=Stage.HERE), ()
        case StagingFailed(weights, error, retryable) if weights == state.wanted and state.stage is Stage.RUNNING:
            return _not_to_be_had(state, error, retryable)
        case Proved(weights) if weights == state.wanted:
            return replace(state, proof=Proof.DONE), ()
        case Disproved(weights, error, retryable) if weights == state.wanted:
            return _not_to_be_had(state, error, retryable)
        case Expired(key):
            return _expire(state, key)
        case Staged() | StagingFailed() | Proved() | Disproved():
            return state, ()
        case _ if event.run != state.run or state.engine is EngineState.NONE:
            return state, ()
        case _:
            return _take_engine(state, event)


def _take_engine(
    state: State, event: EngineUp | EngineAsleep | EngineFaulty | EngineDied | EngineGone | Loaded
) -> Step:
    """Events of the engine that is."""
    stopping = state.engine is EngineState.STOPPING
    match event:
        case EngineDied(reason=reason):
            withdraw = (Withdraw(),) if state.engine is EngineState.SERVING else ()
            if stopping:
                return _without_engine(state), ()
            state = _without_engine(replace(state, attempt=state.attempt + 1))
            state, answers = _fail(state, f"EngineFault: {reason}")
            return state, (*withdraw, *answers)
        case EngineGone():
            return _without_engine(state), ()
        case EngineFaulty(error=error) if not stopping or state.life is LifeCycle.SLEEP:
            withdraw = (Withdraw(),) if state.engine is EngineState.SERVING else ()
            state = replace(state, engine=EngineState.STOPPING, loaded=None, attempt=state.attempt + 1)
            state, answers = _fail(state, error)
            return state, (*withdraw, StopEngine(state.run), *answers)
        case EngineUp() if state.engine is EngineState.STARTING:
            return replace(state, engine=EngineState.IDLE, loaded=None), ()
        case EngineAsleep() if stopping:
            return replace(state, engine=EngineState.ASLEEP, loaded=None), ()
        case Loaded(weights=weights) if state.engine is EngineState.LOADING:
            return replace(state, engine=EngineState.IDLE, loaded=weights), ()
        case _:
            return state, ()


def _order(state: State, event: Ordered) -> Step:
    command = event.command
    if state.goal is Goal.EXIT:
        return state, (Answer(command, "EngineFault: the half is ending", retryable=True),)
    state, stale = _give_way_to_epoch(state, command.epoch)
    state = replace(state, pending=(*state.pending, command))
    match command.verb:
        case Verb.PREPARE:
            goal = Goal.SERVING if state.goal is Goal.SERVING else Goal.PREPARED
            return replace(state, goal=goal), stale
        case Verb.SERVE:
            assert event.weights is not None, "SERVE comes with weights"
            if event.weights != state.wanted:
                state, answers = _supersede(state, (Verb.SERVE,), f"gave way to {command.key}", but=command)
                stale = (*stale, *answers, *((StopStaging(),) if state.stage is Stage.RUNNING else ()))
                stage = Stage.AWAY if event.away else Stage.HERE
                state = replace(state, wanted=event.weights, stage=stage, proof=Proof.NONE)
            return replace(state, goal=Goal.SERVING), stale
        case Verb.REST:
            state, answers = _supersede(state, (Verb.PREPARE, Verb.SERVE), f"gave way to {command.key}")
            return replace(state, goal=Goal.REST), (*stale, *answers)
        case Verb.EXIT:
            state, answers = _supersede(state, tuple(Verb), f"gave way to {command.key}", but=command)
            return replace(state, goal=Goal.EXIT), (*stale, *answers)
        case _:
            state = replace(state, pending=state.pending[:-1])
            error = f"ProtocolError: an inference half does not know {command.verb.value}"
            return state, (*stale, Answer(command, error))


def _standby_died(state: State, reason: str) -> Step:
    lost = state.engine not in (EngineState.NONE, EngineState.STOPPING)
    withdraw = (Withdraw(),) if state.engine is EngineState.SERVING else ()
    state = _without_engine(replace(state, standby=False, attempt=state.attempt + int(lost)))
    if state.goal is Goal.EXIT:
        return state, withdraw
    state, answers = _fail(state, f"EngineFault: {reason}")
    return state, (*withdraw, StartStandby(pause(state.failures)), *answers)


def _not_to_be_had(state: State, error: str, retryable: bool) -> Step:
    """Weights that lie or do not come are never loaded: those who wait for them hear it, and the engine stays
    without.
    """
    weights = state.wanted
    assert weights is not None
    told = tuple(command for command in state.pending if command.verb is Verb.SERVE)
    rest = tuple(command for command in state.pending if command.verb is not Verb.SERVE)
    goal = Goal.PREPARED if state.goal is Goal.SERVING else state.goal
    acts: tuple[Act, ...] = tuple(Answer(command, error, retryable) for command in told)
    engine = state.engine
    if engine is EngineState.SERVING:  # the older weights that it serves are not those that were asked for
        engine, acts = EngineState.IDLE, (Withdraw(), *acts)
    state = replace(state, goal=goal, engine=engine, wanted=None, stage=Stage.HERE, proof=Proof.NONE, pending=rest)
    return replace(state, message=error), acts


def _expire(state: State, key: str) -> Step:
    late = next((command for command in state.pending if command.key == key), None)
    if late is None:
        return state, ()
    state = replace(state, pending=tuple(command for command in state.pending if command.key != key))
    standby = "ready" if state.standby else "still importing"
    why = f"the engine is {state.engine.value}, its standby {standby}"
    if state.stage is Stage.RUNNING:
        why += ", its weights are being fetched"
    if state.message:
        why += f", last: {state.message}"
    error = f"Unreachable: {late.verb.value} not done within {late.deadline_s:g} s; {why}"
    return state, (Answer(late, error, retryable=True),)


def _fail(state: State, error: str) -> Step:
    """One more failure on the way; after `GIVE_UP` of them those who wait hear why, and no further try is made for
    them.
    """
    state = replace(state, failures=state.failures + 1, message=error)
    waiting = tuple(command for command in state.pending if command.verb in (Verb.PREPARE, Verb.SERVE))
    if state.failures < GIVE_UP or not waiting:
        return state, ()
    rest = tuple(command for command in state.pending if command not in waiting)
    state = replace(state, pending=rest, goal=Goal.REST, failures=0)
    return state, tuple(Answer(command, error, retryable=True) for command in waiting)


def _supersede(state: State, verbs: tuple[Verb, ...], why: str, but: Command | None = None) -> Step:
    told = tuple(command for command in state.pending if command.verb in verbs and command is not but)
    rest = tuple(command for command in state.pending if command not in told)
    return replace(state, pending=rest), tuple(
        Answer(command, f"EngineFault: {why}", retryable=True) for command in told
    )


def _give_way_to_epoch(state: State, epoch: int) -> Step:
    told = tuple(command for command in state.pending if command.epoch < epoch)
    rest = tuple(command for command in state.pending if command.epoch >= epoch)
    return replace(state, pending=rest), tuple(
        Answer(command, f"StaleEpoch: epoch {epoch} has begun; another master runs this job") for command in told
    )


def _without_engine(state: State) -> State:
    """No engine; a proof holds for one start only, because the slot may be written again by a later epoch."""
    return replace(state, engine=EngineState.NONE, loaded=None, proof=Proof.NONE)


def _answer_done(state: State) -> Step:
    done = tuple(command for command in state.pending if _is_done(state, command))
    if not done:
        return state, ()
    rest = tuple(command for command in state.pending if command not in done)
    progressed = any(command.verb in (Verb.PREPARE, Verb.SERVE) for command in done)
    state = replace(state, pending=rest, failures=0 if progressed else state.failures)
    return state, tuple(Answer(command) for command in done)


def _is_done(state: State, command: Command) -> bool:
    match command.verb:
        case Verb.PREPARE:
            return state.engine in (EngineState.IDLE, EngineState.LOADING, EngineState.SERVING)
        case Verb.SERVE:
            return state.engine is EngineState.SERVING and state.loaded == state.wanted
        case Verb.REST if state.life is LifeCycle.KEEP:
            return state.engine not in (EngineState.SERVING, EngineState.LOADING)
        case Verb.REST if state.life is LifeCycle.SLEEP:
            return state.engine in (EngineState.NONE, EngineState.ASLEEP)
        case _:
            return state.engine is EngineState.NONE


def _advance(state: State) -> Step:
    """The next acts from where the engine is towards the goal."""
    if state.stage is Stage.RUNNING and state.goal in (Goal.REST, Goal.EXIT):
        state, acts = _advance(replace(state, stage=Stage.AWAY))
        return state, (StopStaging(), *acts)
    match state.goal:
        case Goal.REST:
            return _towards_rest(state)
        case Goal.EXIT:
            state, acts = _stop(state)
            return state, acts if state.engine is not EngineState.NONE else (*acts, End())
        case Goal.PREPARED:
            return _towards_up(state)
        case Goal.SERVING:
            return _towards_serving(state)


def _towards_rest(state: State) -> Step:
    if state.life is LifeCycle.RESTART:
        return _stop(state)
    withdraw = (Withdraw(),) if state.engine is EngineState.SERVING else ()
    if state.life is LifeCycle.KEEP and withdraw:
        return replace(state, engine=EngineState.IDLE), (*withdraw, AbortAll(state.run))
    if state.life is LifeCycle.SLEEP and state.engine in (EngineState.IDLE, EngineState.SERVING):
        return replace(state, engine=EngineState.STOPPING, loaded=None), (*withdraw, ReleaseEngine(state.run))
    return state, ()


def _stop(state: State) -> Step:
    if state.engine in (EngineState.NONE, EngineState.STOPPING):
        return state, ()
    withdraw = (Withdraw(),) if state.engine is EngineState.SERVING else ()
    return replace(state, engine=EngineState.STOPPING, loaded=None), (*withdraw, StopEngine(state.run))


def _towards_up(state: State) -> Step:
    if state.engine is EngineState.NONE and state.standby:
        state = replace(state, engine=EngineState.STARTING, run=state.run + 1, loaded=None)
        return state, (StartEngine(state.run, pause(state.failures)),)
    if state.engine is EngineState.ASLEEP:
        return replace(state, engine=EngineState.STARTING), (WakeEngine(state.run),)
    return state, ()


def _towards_serving(state: State) -> Step:
    wanted = state.wanted
    assert wanted is not None, "the goal SERVING has weights"
    state, acts = _towards_up(state)
    if state.stage is Stage.AWAY:
        state, acts = replace(state, stage=Stage.RUNNING), (*acts, StageShards(wanted))
    if state.stage is not Stage.HERE:
        return state, acts
    if state.proof is Proof.NONE:
        state, acts = replace(state, proof=Proof.RUNNING), (*acts, Prove(wanted))
    if state.proof is not Proof.DONE:
        return state, acts
    if state.engine is EngineState.SERVING and state.loaded != wanted:
        state, acts = replace(state, engine=EngineState.IDLE), (*acts, Withdraw())
    if state.engine is EngineState.IDLE and state.loaded == wanted:
        state = replace(state, engine=EngineState.SERVING, failures=0, message="")
        return state, (*acts, Announce(wanted))
    if state.engine is EngineState.IDLE:
        state = replace(state, engine=EngineState.LOADING, loaded=None)
        return state, (*acts, Load(state.run, wanted))
    return state, acts


def pause(failures: int) -> float:
    """Seconds before the next try: none after the first failure, then 1, 2, 4 .. up to `LONGEST_PAUSE_S`."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_S, 2.0 ** (failures - 2))

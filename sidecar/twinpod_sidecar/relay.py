"""The training half decides here. Pure: (state, event) to (state, acts).

Theory of operation
-------------------
Commands queue up and go to rank 0 one at a time, when it asks. It asks only
when it has nothing to report, so an ask while a command is under way means that the answer to the last ask was lost:
the same command is given again. Ranks that end without being told to, or that let a deadline pass while they execute,
cannot be mended from outside: everyone who waits is answered (retryable), and the half ends, so that its container
starts anew and the master resumes from its books.

Of several hybrid pods the first one leads: rank 0 is among its ranks and takes the commands of all. The half of any
other pod *follows*: nobody asks it for commands, and all that it can be told is to end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twinpod.errors import EXIT_FAULT, EXIT_INPUT
from twinpod.records.life import Command, Reply, Verb

EXIT_GRACE_S = 10.0  # for ranks that were asked to end, before they are told by a signal
INFERENCE_ONLY = (Verb.PREPARE, Verb.SERVE, Verb.REST)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The half at one moment. `given`: rank 0 has been handed the first of `queue`."""

    leader: str = ""  # pod of rank 0, when that is another one
    queue: tuple[Command, ...] = ()
    given: bool = False
    asking: bool = False  # rank 0 waits for a command
    ready: bool = False  # rank 0 has asked once: ranks are up
    exiting: bool = False
    code: int = 0  # exit code of the half, once it exits
    message: str = ""


@dataclass(frozen=True, slots=True)
class Ordered:
    """A new command."""

    command: Command


@dataclass(frozen=True, slots=True)
class Asked:
    """Rank 0 wants a command."""


@dataclass(frozen=True, slots=True)
class AskOver:
    """It stopped waiting, without one."""


@dataclass(frozen=True, slots=True)
class Reported:
    """Rank 0 has executed a command."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class RanksEnded:
    """All ranks are observed gone. `refused`: what one of them had against the input; no restart can mend that."""

    reason: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Expired:
    """A command's deadline is over."""

    key: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM."""


@dataclass(frozen=True, slots=True)
class Give:
    """Answer rank 0's ask."""

    command: Command


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a command; no error means done."""

    key: str
    error: str = ""
    retryable: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StopRanks:
    """Let them end by themselves for `grace_s`, then end them; answered by RanksEnded."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class End:
    """End the process."""

    code: int


Event = Ordered | Asked | AskOver | Reported | RanksEnded | Expired | Terminate
Act = Give | Answer | StopRanks | End
Step = tuple[State, tuple[Act, ...]]


def step(state: State, event: Event) -> Step:
    """The half after `event`, and what to do now."""
    match event:
        case Ordered(command):
            return _order(state, command)
        case Asked():
            return _give(replace(state, asking=True, ready=True, given=False))
        case AskOver():
            return replace(state, asking=False), ()
        case Reported(reply):
            return _report(state, reply)
        case RanksEnded(reason, refused):
            return _ranks_ended(state, reason, refused)
        case Expired(key):
            return _expire(state, key)
        case Terminate():
            return _leave(state, "EngineFault: the half was told to end", 0)


def _order(state: State, command: Command) -> Step:
    if state.exiting:
        return state, (Answer(command.key, "EngineFault: the half is ending", retryable=True),)
    if command.verb in INFERENCE_ONLY:
        return state, (Answer(command.key, f"ProtocolError: a training half does not know {command.verb.value}"),)
    if state.leader and command.verb is not Verb.EXIT:
        error = f"ProtocolError: {command.verb.value}: the ranks of this pod follow rank 0 in {state.leader}"
        return state, (Answer(command.key, error),)
    if state.leader:  # its ranks end when rank 0 tells them
        return replace(state, exiting=True, queue=(command,)), (StopRanks(EXIT_GRACE_S),)
    if command.verb is Verb.EXIT and state.queue:
        state, acts = _leave(state, f"EngineFault: gave way to {command.key}", 0)
        return replace(state, queue=(command,)), acts
    if command.verb is Verb.EXIT:
        state = replace(state, exiting=True, queue=(command,))
        state, acts = _give(state)
        return state, (*acts, StopRanks(EXIT_GRACE_S if acts else 0.0))
    return _give(replace(state, queue=(*state.queue, command)))


def _give(state: State) -> Step:
    if not state.queue or not state.asking or state.given:
        return state, ()
    return replace(state, asking=False, given=True), (Give(state.queue[0]),)


def _report(state: State, reply: Reply) -> Step:
    if not state.queue or not state.given or reply.key != state.queue[0].key:
        return state, ()  # told before, or its waiter has been answered otherwise
    state = replace(state, queue=state.queue[1:], given=False, message=reply.error)
    answer = Answer(reply.key, reply.error, reply.retryable, reply.detail)
    state, acts = _give(state)
    return state, (answer, *acts)


def _ranks_ended(state: State, reason: str, refused: str) -> Step:
    if state.exiting:
        done = tuple(Answer(command.key) for command in state.queue if command.verb is Verb.EXIT)
        return replace(state, queue=()), (*done, End(state.code))
    error = f"EngineFault: the ranks ended without being told to: {reason}"
    if refused:
        error = f"InputError: {refused}"
    code = EXIT_INPUT if refused else EXIT_FAULT
    answers = tuple(Answer(command.key, error, retryable=not refused) for command in state.queue)
    return replace(state, queue=(), exiting=True, code=code, message=error), (*answers, End(code))


def _expire(state: State, key: str) -> Step:
    late = next((command for command in state.queue if command.key == key), None)
    if late is None:
        return state, ()
    said = f"{late.verb.value} not done within {late.deadline_s:g} s"
    if state.given and state.queue[0] is late and not state.exiting:
        error = f"EngineFault: {said}: the ranks are stuck and are started anew"
        return _leave(replace(state, message=error), error, EXIT_FAULT)
    rest = tuple(command for command in state.queue if command is not late)
    why = "the ranks are busy with " + state.queue[0].key if state.given else "the ranks are not up yet"
    if state.ready and not state.given:
        why = "rank 0 does not ask for work"
    return replace(state, queue=rest), (Answer(key, f"Unreachable: {said}: {why}", retryable=True),)


def _leave(state: State, error: str, code: int) -> Step:
    """End the ranks and then the half; everyone who waits is told `error`, a waiting EXIT when they are gone."""
    told = tuple(command for command in state.queue if command.verb is not Verb.EXIT)
    exits = tuple(command for command in state.queue if command.verb is Verb.EXIT)
    answers = tuple(Answer(command.key, error, retryable=True) for command in told)
    again = () if state.exiting else (StopRanks(0.0),)
    return replace(state, queue=exits, given=False, exiting=True, code=state.code or code), (*answers, *again)

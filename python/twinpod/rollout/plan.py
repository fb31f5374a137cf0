"""From work items to engine requests and from engine outputs to segments. Pure: values in, values out.

A request is named `<item id>#<place>;`. The place is the trajectory's in its item; the semicolon keeps one name from
being the beginning of another (`x#1;` and `x#10;`), because engines abort by the beginning of a name.
"""

from __future__ import annotations

import numpy as np

from twinpod.errors import EngineFault, ProtocolError, WrongVersion
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Resumption, SamplingSettings, Segment, Stop, WorkItem
from twinpod.rollout.ports import EngineOutput, EngineRequest, Finish
from twinpod.rollout.repeat import find

__all__ = ["budget", "refusal", "repeats", "request_name", "requests", "segment"]

CHECK_EVERY = 32  # fewest tokens between two reports of an answer: a sign of life, and a look for a repeat
CHECKS = 64  # most reports an answer


def budget(settings: SamplingSettings, done: int) -> int:
    """New tokens that a trajectory with `done` tokens may still make in this iteration; 0 when it has none left."""
    return max(0, min(settings.segment_tokens, settings.max_tokens - done))


def refusal(item: WorkItem, version: int) -> str:
    """Why an engine with the weights `version` cannot do the item; empty when it can."""
    if item.version != version:
        return f"wants weights {item.version}, the engine serves {version}"
    if not item.prompt_tokens:
        return "has an empty prompt"
    spent = [r.trajectory_id for r in item.trajectories if not budget(item.sampling, len(r.tokens))]
    return f"trajectories {spent} have no tokens left to make" if spent else ""


def request_name(item: WorkItem, place: int) -> str:
    """The name by which the engine knows one trajectory of an item."""
    return f"{item.item_id}#{place};"


def requests(item: WorkItem) -> tuple[EngineRequest, ...]:
    """One request a trajectory: prompt and what it has so far, and the room that is left."""
    settings = item.sampling
    watch = max(CHECK_EVERY, settings.segment_tokens // CHECKS)
    return tuple(
        EngineRequest(
            name=request_name(item, place),
            tokens=item.prompt_tokens + resumption.tokens,
            max_new_tokens=budget(settings, len(resumption.tokens)),
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop_token_ids=settings.stop_token_ids,
            seed=draw_seed(item.seed, resumption.trajectory_id),
            report_every=watch,
        )
        for place, resumption in enumerate(item.trajectories)
    )


def draw_seed(seed: int, trajectory_id: int) -> int:
    """31 bits that differ between trajectories and are the same in a repeated run, whichever item they come in."""
    value = 0x9E3779B9
    for part in (seed, trajectory_id & 0xFFFFFFFF, trajectory_id >> 32):
        value = (value ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        value ^= value >> 13
    return value & 0x7FFFFFFF


def repeats(item: WorkItem, place: int, tokens: TokenIds, seen: int) -> int | None:
    """How many new `tokens` to keep when the trajectory repeats, or None. `seen`: new tokens already looked at."""
    settings, before = item.sampling, item.trajectories[place].tokens
    if not settings.repeat_ngram:
        return None
    since = len(before) + seen
    skip = max(0, since + 1 - settings.repeat_ngram * settings.repeat_count)  # `find` looks no further back
    tail = before[skip:] + tokens[max(0, skip - len(before)) :]
    found = find(tail, ngram=settings.repeat_ngram, count=settings.repeat_count, since=since - skip)
    return None if found is None else found.end + skip - len(before)


def segment(item: WorkItem, place: int, output: EngineOutput, pod: str) -> Segment | None:
    """The segment that a finished output makes; None for an answer cut before its first token: there is nothing to
    store.

    WrongVersion when other weights made it, EngineFault when the engine refused or its numbers are none, ProtocolError
    when the output contradicts its request.
    """
    resumption = item.trajectories[place]
    if output.finish is Finish.FAILED:
        raise EngineFault(output.message or "the engine gave no reason", where=output.name)
    if output.tokens and output.version != item.version:
        raise WrongVersion(f"asked for weights {item.version}, answered by {output.version}", where=output.name)
    if len(output.tokens) != len(output.logps):
        raise ProtocolError(f"{len(output.tokens)} tokens but {len(output.logps)} log-probs", where=output.name)
    finite = np.isfinite(output.logps.array)
    if not finite.all():
        token = int(np.argmin(finite))
        raise EngineFault(f"the log-prob of token {token} is {output.logps[token]}, no number", where=output.name)
    keep = repeats(item, place, output.tokens, 0)
    stop = _stop(item, resumption, output, keep)
    if stop is Stop.CUT and not output.tokens:
        return None
    return Segment(
        trajectory_id=resumption.trajectory_id,
        index=resumption.index,
        version=item.version,
        tokens=output.tokens[:keep],
        logps=output.logps[:keep],
        stop=stop,
        pod=pod,
    )


def _stop(item: WorkItem, resumption: Resumption, output: EngineOutput, keep: int | None) -> Stop:
    """Why the segment ended. A repeat comes first: it ended the answer earlier than whatever the engine saw."""
    made = len(output.tokens)
    if made > budget(item.sampling, len(resumption.tokens)):
        raise ProtocolError(f"{made} tokens, more than asked for", where=output.name)
    if keep is not None:
        return Stop.REPEAT
    if output.finish is Finish.STOP:
        if made and output.tokens[-1] in item.sampling.stop_token_ids:
            return Stop.EOS
        raise ProtocolError("stopped, but its last token is no stop token", where=output.name)
    if output.finish is Finish.ABORT and made < budget(item.sampling, len(resumption.tokens)):
        return Stop.CUT
    if output.finish is Finish.LENGTH and made < budget(item.sampling, len(resumption.tokens)):
        return Stop.LENGTH  # the engine has no room for more (context, cache): asked again it would say so again
    return Stop.LENGTH if len(resumption.tokens) + made >= item.sampling.max_tokens else Stop.BUDGET

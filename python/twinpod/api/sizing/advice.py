"""Whether a job fits, the largest micro-batch, and what to change, in the order of what it costs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from twinpod.api import quantity
from twinpod.api.sizing.nouns import GIB, Accelerator, Change, Fit, Setup
from twinpod.api.sizing.parameters import total
from twinpod.api.sizing.phases import (
    cache_tokens,
    holdings,
    kv_token_bytes,
    rollout_holding,
    shared_memory,
    step_holding,
    train_holding,
)

GRAIN = 256  # tokens; micro-batches are told in multiples of it
MOST_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """A change and the setup that it makes."""

    change: Change
    apply: Callable[[Setup], Setup]


def fit(setup: Setup, accelerator: Accelerator | None, *, shared_memory_given: int = 0, host_bytes: int = 0) -> Fit:
    """The whole answer. `host_bytes`: memory that a pod may have, 0 when that is not known."""
    phases = holdings(setup, accelerator)
    tokens = cache_tokens(setup, accelerator)
    problems = list(_problems(setup, accelerator))
    needed = shared_memory(setup)
    changes = list(advise(setup, accelerator)) if accelerator is not None else []
    if 0 < shared_memory_given < needed:
        asked = quantity.from_bytes(_up(needed, GIB))
        problems.append(f"/dev/shm needs {gib(needed)}, hybrid.sharedMemory is {gib(shared_memory_given)}")
        changes.append(Change(field="hybrid.sharedMemory", value=asked, why="two slots of the weights lie there"))
    worst = max(phases, key=lambda one: one.host_bytes)
    if 0 < host_bytes < worst.host_bytes:
        problems.append(f"a pod needs {gib(worst.host_bytes)} of memory ({worst.phase}), it may have {gib(host_bytes)}")
        changes.append(
            Change(field="hybrid.accelerators", value="more pods of fewer ranks", why="a pod holds all ranks'")
        )
    return Fit(
        parameters=total(setup.shape),
        accelerator=accelerator,
        holdings=phases,
        shared_memory=needed,
        shared_memory_given=shared_memory_given,
        largest_micro_batch=largest_micro_batch(setup, accelerator) if accelerator else 0,
        kv_token_bytes=kv_token_bytes(setup),
        kv_tokens=tokens,
        sequences=min(setup.engine_data * (tokens // setup.context), setup.max_running),
        fits=not problems,
        problems=tuple(problems),
        changes=tuple(changes),
    )


def gib(nbytes: int) -> str:
    """Bytes as a person reads them."""
    return f"{nbytes / GIB:,.1f} GiB"


def _up(value: int, grain: int) -> int:
    return -(-value // grain) * grain


def _sum(amounts: tuple[object, ...]) -> int:
    return sum(amount.nbytes for amount in amounts)  # type: ignore[attr-defined]


def train_excess(setup: Setup, accelerator: Accelerator) -> int:
    """Bytes that training lacks; negative: that stay free."""
    most = max(_sum(train_holding(setup, setup.longest_micro_batch)), _sum(step_holding(setup)))
    return most - accelerator.usable


def rollout_excess(setup: Setup, accelerator: Accelerator) -> int:
    """Bytes that generation lacks, one sequence of full length in the cache at least."""
    short = max(0, setup.context - cache_tokens(setup, accelerator)) * kv_token_bytes(setup)
    return _sum(rollout_holding(setup, accelerator)) + short - accelerator.usable


def _problems(setup: Setup, accelerator: Accelerator | None) -> Iterator[str]:
    if accelerator is None:
        return
    has = gib(accelerator.usable)
    if (lacking := train_excess(setup, accelerator)) > 0:
        yield f"training needs {gib(lacking + accelerator.usable)} of an accelerator that has {has}"
    if (lacking := rollout_excess(setup, accelerator)) > 0:
        yield f"generating needs {gib(lacking + accelerator.usable)} of an accelerator that has {has}"
    if 0 < setup.kv_tokens < setup.context:
        yield f"hybrid.inference.kvTokens ({setup.kv_tokens:,}) holds no sequence of {setup.context:,} tokens"


def largest_micro_batch(setup: Setup, accelerator: Accelerator) -> int:
    """Most padded tokens of a micro-batch that fit, in multiples of 256; 0 when none do."""

    def fits(tokens: int) -> bool:
        return _sum(train_holding(setup, tokens)) <= accelerator.usable

    low, high = 0, MOST_TOKENS // GRAIN
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * GRAIN) else (low, middle - 1)
    return low * GRAIN


def advise(setup: Setup, accelerator: Accelerator) -> Iterator[Change]:
    """What makes it fit: the cheapest changes first, those left out that turned out not to be needed."""
    yield from _needed(setup, _training_moves(setup), lambda tried: train_excess(tried, accelerator) <= 0)
    yield from _needed(setup, _engine_moves(setup, accelerator), lambda tried: rollout_excess(tried, accelerator) <= 0)


def _needed(setup: Setup, moves: Iterator[_Move], fits: Callable[[Setup], bool]) -> list[Change]:
    """Moves in order until it fits, then without each one that is not needed; a last word when nothing helps."""
    if fits(setup):
        return []
    taken: list[_Move] = []
    for move in moves:
        taken.append(move)
        if fits(_after(setup, taken)):
            break
    else:
        return [Change(field="--accelerator", value="one with more memory", why="no layout of this pod fits")]
    for move in list(taken):
        fewer = [one for one in taken if one is not move]
        if fits(_after(setup, fewer)):
            taken = fewer
    return [move.change for move in taken]


def _after(setup: Setup, moves: list[_Move]) -> Setup:
    for move in moves:
        setup = move.apply(setup)
    return setup


def _move(field: str, value: object, why: str, **changed: object) -> _Move:
    return _Move(
        change=Change(field=field, value=str(value), why=why),
        apply=lambda setup: replace(setup, **changed),  # type: ignore[arg-type]
    )


def _training_moves(setup: Setup) -> Iterator[_Move]:
    shape = setup.shape
    if setup.micro_tokens > setup.context:
        yield _move("algorithm.microBatchTokens", setup.context, "one sequence at a time", micro_tokens=setup.context)
    if setup.tensor > 1 and not setup.sequence_parallel:
        yield _move(
            "hybrid.trainer.sequenceParallel",
            "true",
            "tensor-parallel ranks divide what lies between their layers",
            sequence_parallel=True,
        )
    if setup.recompute == "None" and not setup.shape.plain:
        yield _move(
            "hybrid.trainer.recompute", "Selective", "the MLPs' activations are made again", recompute="Selective"
        )
    if setup.recompute != "Full":
        yield _move(
            "hybrid.trainer.recompute", "Full", "activations are made again, a third more computing", recompute="Full"
        )
    tensor = setup.tensor * 2
    while tensor * setup.pipeline <= setup.accelerators and not any(
        count % tensor for count in (shape.heads, shape.kv_heads, shape.ffn)
    ):
        data = max(1, setup.accelerators // (tensor * setup.pipeline))
        yield _move(
            "hybrid.trainer.tensorParallel",
            f"{tensor}, sequenceParallel: true, dataParallel: {data}",
            "each layer is divided over more ranks",
            tensor=tensor,
            data=data,
            sequence_parallel=True,
        )
        tensor *= 2
    for factor in (2, 4, 8):
        replicas = setup.replicas * factor
        yield _move(
            "hybrid.replicas", replicas, "moments and main weights are divided over the pods", replicas=replicas
        )


def _engine_moves(setup: Setup, accelerator: Accelerator) -> Iterator[_Move]:
    if setup.kv_tokens:
        spare = setup.kv_tokens - _up(max(0, rollout_excess(setup, accelerator)), 1) // kv_token_bytes(setup) - 1
        fewer = spare // GRAIN * GRAIN
        if fewer >= setup.context:
            yield _move(
                "hybrid.inference.kvTokens", fewer, "fewer sequences at once, more of them wait", kv_tokens=fewer
            )
    tensor = setup.engine_tensor * 2
    while tensor <= setup.accelerators and setup.shape.heads % tensor == 0 and setup.shape.ffn % tensor == 0:
        yield _move(
            "hybrid.inference.tensorParallel",
            tensor,
            "weights and cache are divided",
            engine_tensor=tensor,
            engine_data=max(1, setup.accelerators // tensor),
        )
        tensor *= 2

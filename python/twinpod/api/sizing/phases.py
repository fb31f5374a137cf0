"""What each phase of an iteration holds, on the fullest accelerator and in a pod's memory. Pure.

Allowances stand here, each with its reason; everything else is counted.
"""

from __future__ import annotations

from twinpod.api.sizing.activations import FLOAT, kept, logits
from twinpod.api.sizing.nouns import GIB, Accelerator, Amount, Holding, Setup
from twinpod.api.sizing.parameters import stage_tensors, total
from twinpod.api.sizing.shared import MIB, shared_bytes

CONTEXT_BYTES = GIB  # a process on an accelerator: CUDA context, its modules, cuBLAS workspaces, NCCL's buffers
GRAPHS_BYTES = 2 * GIB  # an engine beside weights and cache: CUDA graphs, sampling, workspaces of attention
TRAINER_BYTES = {False: 768 * MIB, True: 3 * GIB}  # host memory of an idle rank: on a CPU (measured), with CUDA
ENGINE_BYTES = {False: 1536 * MIB, True: 4 * GIB}  # host memory of an engine's rank and its standby
MICRO_BYTES = 36  # of a micro-batch's arrays on the device, a token (`twinpod.trainer.packing`)
SAMPLE_BYTES = 8  # of a rank's samples in host memory, a token: the token and its log-prob
FRAGMENTS = {
    False: 0.6,  # of activations and logits: holes in the heap of glibc (0.5 to 0.9 measured)
    True: 0.03,  # of all tensors: what torch's caching allocator cannot use
}


def published_bytes(setup: Setup) -> int:
    """Bytes of one version of the weights, as they are published."""
    return total(setup.shape) * setup.item


def shared_memory(setup: Setup) -> int:
    """Bytes of /dev/shm that a pod needs."""
    ranks = max(setup.ranks, setup.engine_ranks)
    return shared_bytes(setup.shape, item=setup.item, ranks=ranks)


def kv_token_bytes(setup: Setup) -> int:
    """Bytes of a token's keys and values on one rank of the engine; beyond their number, heads are copied."""
    heads = max(1, setup.shape.kv_heads // setup.engine_tensor)
    return 2 * setup.shape.layers * heads * setup.shape.head_dim * setup.item


def engine_weights(setup: Setup) -> int:
    """Bytes of the weights on one rank of the engine."""
    return published_bytes(setup) // setup.engine_tensor


def rank_state(setup: Setup) -> dict[str, int]:
    """Bytes of weights, main weights, gradients and moments on the fullest trainer rank.

    Gradients are summed in float32. With accelerators Megatron's distributed optimizer divides main weights and moments
    over the copies of the model; on a CPU every rank has them whole.
    """
    count = max(sum(stage_tensors(setup.shape, setup.tensor, setup.pipeline, s)) for s in range(setup.pipeline))
    part = count if setup.on_cpu else -(-count // setup.copies)
    half = setup.item < FLOAT
    return {
        "weights": count * setup.item,
        "main weights": part * FLOAT if half else 0,
        "gradients": count * FLOAT,
        "moments": 2 * part * FLOAT,
    }


def train_holding(setup: Setup, tokens: int) -> tuple[Amount, ...]:
    """Of one rank while it runs forward and backward passes with micro-batches of `tokens`; 2 steps or more."""
    state = rank_state(setup)
    acts = kept(setup, tokens)
    references = setup.samples * setup.context // setup.copies * FLOAT
    batch = references + tokens * setup.pipeline * MICRO_BYTES
    amounts = [
        *(Amount(name=name, nbytes=nbytes) for name, nbytes in state.items()),
        Amount(name="activations", nbytes=acts.layers + acts.working),
        Amount(name="logits", nbytes=logits(setup, tokens)),
        Amount(name="batch", nbytes=batch),
    ]
    return _with_allowances(setup, amounts)


def step_holding(setup: Setup) -> tuple[Amount, ...]:
    """Of one rank while the optimizer updates the weights."""
    state = rank_state(setup)
    amounts = [Amount(name=name, nbytes=nbytes) for name, nbytes in state.items()]
    if setup.on_cpu:  # the largest tensor's square, in float64 and float32 (`platform_cpu.gradient_norm`)
        largest = max(stage_tensors(setup.shape, setup.tensor, setup.pipeline, 0))
        amounts.append(Amount(name="working", nbytes=2 * 8 * largest))
        if setup.copies > 1:  # gradients as one message
            amounts.append(Amount(name="gradient message", nbytes=state["gradients"]))
        passed = train_holding(setup, setup.longest_micro_batch)  # its holes stay in the heap
        amounts += [one for one in passed if one.name == "fragments"]
    return _with_allowances(setup, amounts)


def _with_allowances(setup: Setup, amounts: list[Amount]) -> tuple[Amount, ...]:
    """With what allocators waste, and an accelerator's context."""
    wasted = [amount.nbytes for amount in amounts if not setup.on_cpu or amount.name in ("activations", "logits")]
    if any(wasted):
        amounts.append(Amount(name="fragments", nbytes=int(sum(wasted) * FRAGMENTS[not setup.on_cpu])))
    if not setup.on_cpu:
        amounts.append(Amount(name="CUDA context", nbytes=CONTEXT_BYTES))
    return tuple(amount for amount in amounts if amount.nbytes)


def offloaded(setup: Setup) -> int:
    """Bytes of pinned host memory a rank that its state goes to; torch takes powers of two of it for each tensor."""
    counts = stage_tensors(setup.shape, setup.tensor, setup.pipeline, 0)
    if setup.on_cpu:
        return sum(counts) * setup.item + rank_state(setup)["main weights"]
    main = FLOAT if setup.item < FLOAT else 0
    return sum(power_of_two(one * setup.item) + power_of_two(one * main // setup.copies) for one in counts)


def power_of_two(nbytes: int) -> int:
    """The least power of two that is not below."""
    return 1 << max(nbytes - 1, 0).bit_length() if nbytes else 0


def rollout_holding(setup: Setup, accelerator: Accelerator | None) -> tuple[Amount, ...]:
    """Of one accelerator (one engine rank on a CPU) while the engine generates."""
    amounts = [
        Amount(name="engine's weights", nbytes=engine_weights(setup)),
        Amount(name="key-value cache", nbytes=cache_tokens(setup, accelerator) * kv_token_bytes(setup)),
    ]
    if not setup.on_cpu:
        amounts += [
            Amount(name="CUDA graphs", nbytes=GRAPHS_BYTES),
            Amount(name="CUDA context", nbytes=2 * CONTEXT_BYTES),  # the engine's, and the trainer's that waits
        ]
    return tuple(amounts)


def cache_tokens(setup: Setup, accelerator: Accelerator | None) -> int:
    """Tokens of the cache: what the job says, or what the engine's share of the accelerator leaves beside weights."""
    if setup.kv_tokens or accelerator is None:
        return setup.kv_tokens
    free = accelerator.usable - CONTEXT_BYTES  # the trainer's context stays
    share = int(free * setup.memory_fraction)
    return max(0, share - engine_weights(setup)) // kv_token_bytes(setup)


def holdings(setup: Setup, accelerator: Accelerator | None) -> tuple[Holding, ...]:
    """The phases in order."""
    train, step = train_holding(setup, setup.longest_micro_batch), step_holding(setup)
    rollout = rollout_holding(setup, accelerator)
    state = rank_state(setup)
    publish = _with_allowances(
        setup, [Amount(name=name, nbytes=state[name]) for name in ("weights", "main weights", "gradients")]
    )
    cuda = not setup.on_cpu
    tokens = setup.samples * setup.context // setup.copies
    samples = Amount(name="samples", nbytes=setup.ranks * tokens * SAMPLE_BYTES)
    shm = Amount(name="/dev/shm", nbytes=shared_memory(setup))
    trainer = Amount(name="trainer's processes", nbytes=setup.ranks * TRAINER_BYTES[cuda])
    engine = Amount(name="engine's processes", nbytes=setup.engine_ranks * ENGINE_BYTES[cuda])
    away = Amount(name="offloaded state", nbytes=setup.ranks * offloaded(setup)) if setup.offload else None
    base = (shm, trainer, engine)
    if cuda:
        gone = (away,) if away else ()
        main = max(sum(stage_tensors(setup.shape, setup.tensor, setup.pipeline, s)) for s in range(setup.pipeline))
        gathered = Amount(name="gathered weights", nbytes=setup.ranks * main * FLOAT)
        return (
            Holding(phase="forward, backward", gpu=train, host=(*base, samples)),
            Holding(phase="optimizer step", gpu=step, host=(*base, samples)),
            Holding(phase="publish", gpu=publish, host=base),
            Holding(phase="snapshot", gpu=publish, host=(*base, gathered)),
            Holding(phase="rollout", gpu=rollout, host=(*base, *gone)),
        )
    standing = _times((Amount(name="weights", nbytes=state["weights"]),), setup.ranks) if away is None else (away,)
    return (
        Holding(phase="forward, backward", gpu=(), host=(*base, samples, *_times(train, setup.ranks))),
        Holding(phase="optimizer step", gpu=(), host=(*base, samples, *_times(step, setup.ranks))),
        Holding(phase="publish", gpu=(), host=(*base, *_times(publish, setup.ranks))),
        Holding(phase="rollout", gpu=(), host=(*base, *standing, *_times(rollout, setup.engine_ranks))),
    )


def _times(amounts: tuple[Amount, ...], count: int) -> tuple[Amount, ...]:
    return tuple(Amount(name=amount.name, nbytes=amount.nbytes * count) for amount in amounts)

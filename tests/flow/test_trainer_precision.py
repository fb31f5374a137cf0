"""Training in bfloat16 with real Megatron ranks on CPUs: small steps add up, a resume is as if it had never stopped.

One launch of torchrun per number of ranks, as in `test_trainer_layouts.py`; this file is also the ranks' script.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twinpod.errors import NumericsError, TwinpodError
from twinpod.records.arrays import LogProbs
from twinpod.records.codec import plain
from twinpod.records.life import Command, Verb
from twinpod.records.training import RankBatch, Sample, TrainSettings
from twinpod.testing.batches import rank_batches, sample
from twinpod.trainer.place import Place, Sizes

pytestmark = pytest.mark.timeout(600)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "tie_word_embeddings": True,
    "head_dim": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 13,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": 1,
}
SETTINGS = TrainSettings(
    learning_rate=1e-6,
    betas=(0.9, 0.95),
    weight_decay=0.01,
    eps=1e-8,
    tau=0.1,
    temperature=1.0,
    mask="all",
    steps=2,
    clip_grad=1.0,
    micro_batch_tokens=48,
)
LAYOUTS = {1: ((1, 1),), 2: ((1, 1), (2, 1), (1, 2))}  # ranks -> (tensor, pipeline)
ITERATIONS = 100


def make_batch(iteration: int, place: Place, change: Callable[[Sample], Sample | None] = lambda one: one) -> RankBatch:
    """One rank's part of 16 samples in 4 groups; advantages do not change, so that steps go one way.

    `change`: makes another of a sample, or leaves it out.
    """
    rng = random.Random(5)
    samples = []
    for i in range(16):
        answer = rng.randrange(1, 7)
        samples.append(
            sample(
                i,
                i // 4,
                [rng.randrange(13) for _ in range(rng.randrange(1, 4))],
                [rng.randrange(13) for _ in range(answer)],
                [-rng.random() for _ in range(answer)],
                (iteration + 1,) * answer,
                advantage=rng.uniform(-1, 1),
                reward=0.5,
            )
        )
    changed = [other for other in map(change, samples) if other is not None]
    batches = rank_batches(
        changed, iteration=iteration, version=iteration + 1, group_size=4, ranks=place.dp_size,
        budget=SETTINGS.micro_batch_tokens,
    )  # fmt: skip
    return batches[place.dp_rank]


# ---- in the ranks
# ----------------------------------------------------------------------------------------------------------------


def rank_main(ranks: int, base: Path) -> None:
    """Everything that this number of ranks shows, into files of `base`."""
    import torch
    from megatron.core import parallel_state

    from twinpod.trainer.megatron import lay_out, start_ranks
    from twinpod.trainer.wire import Control

    machine = start_ranks(local_rank=0, dtype="bfloat16")
    full = replace(machine, dtype=torch.float32)
    control = Control(120.0)
    for tensor, pipeline in LAYOUTS[ranks]:
        place = lay_out(Sizes(tensor=tensor, pipeline=pipeline), machine)
        found: dict[str, Any] = {}
        if ranks == 1:
            found["share"] = movement(place, machine, full)
        found |= resumed(base / f"{ranks}-{tensor}x{pipeline}", base, place, machine, control)
        found["errors"] = not_finite(base / f"bad-{ranks}-{tensor}x{pipeline}", place, full, control)
        found["steps"] = mini_batches(place, full)
        found["refused"] = refused(new_rank(place, full), control)
        (base / f"{ranks}-{tensor}x{pipeline}-{control.rank}.json").write_text(json.dumps(found))
        parallel_state.destroy_model_parallel()
    found = distributed_optimizer(machine)
    (base / f"distributed-{ranks}-{control.rank}.json").write_text(json.dumps(found))


def distributed_optimizer(machine: Any) -> dict[str, Any]:
    """`platform_gpu` as it is, data parallel over all ranks, against `platform_cpu`: Megatron's DDP and distributed
    optimizer do with CPU tensors what they do with CUDA's, if these only say that they are.
    """
    import torch
    from megatron.core import parallel_state

    from twinpod.records.model_shape import shape_from_huggingface
    from twinpod.trainer import megatron, platform_cpu, platform_gpu
    from twinpod.trainer.memory import RankMemory, held_tensors
    from twinpod.trainer.optimizer import fill
    from twinpod.trainer.step import train_iteration
    from twinpod.trainer.weights import load_random

    class CudaNames(platform_cpu.CpuDevices):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.type and len(args) == 1:
                return func(*args).replace("torch.", "torch.cuda.")
            return super().__torch_function__(func, types, args, kwargs)

    class WithGpu(megatron.Machine):
        is_cpu = False

    parallel_state.initialize_model_parallel(order=megatron.ORDER, create_gloo_process_groups=True)
    place, shape = megatron.current_place(), shape_from_huggingface(CONFIG)
    settings = replace(SETTINGS, learning_rate=1e-4)
    with CudaNames():
        plain = megatron.build_model(shape, place, machine, megatron.Activations())
        megatron.mark_partitions(dict(plain.named_parameters()), shape, place)
        model = platform_gpu.wrap(plain, half=True)
        optimizer = platform_gpu.GpuOptimizer(model, half=True)
        as_gpu = WithGpu(device=machine.device, dtype=machine.dtype)
        rank = megatron.RankModel(
            shape=shape,
            place=place,
            machine=as_gpu,
            model=model,
            optimizer=optimizer,
            activations=megatron.Activations(),
        )
        fill(optimizer, lambda weights: load_random(weights, shape, place, seed=3))
        first = {name: tensor.clone() for name, tensor in optimizer.gather().items()}
        here = sum(tensor.numel() for tensor in optimizer.main_tensors().values())
        stats = [train_iteration(rank, make_batch(iteration, place), settings) for iteration in (1, 2)]
        found = optimizer.gather()
        optimizer.take(first)
        memory, again = RankMemory(rank, enabled=True), []
        torch.cuda.memory_reserved = lambda device: sum(
            tensor.untyped_storage().nbytes()
            for tensor in [*held_tensors(rank).values(), *(parameter.main_grad for parameter in model.parameters())]
        )
        for iteration in (1, 2):
            again.append(train_iteration(rank, make_batch(iteration, place), settings))
            assert memory.offload() == 0, "parameters, main weights and gradient buffers are away"
            memory.onload()
        repeated = optimizer.gather()
    cpu = new_rank(place, machine)
    expected = [train_iteration(cpu, make_batch(iteration, place), settings) for iteration in (1, 2)]
    return {
        "share": here / sum(tensor.numel() for tensor in found.values()),
        "norms": [[one.grad_norm for one in each] for each in (stats, expected)],
        "difference": float((flat(found) - flat(cpu.optimizer.gather())).abs().max()),
        "moved": float((flat(found) - flat(first)).abs().max()),
        "repeated": bool((flat(found) == flat(repeated)).all()) and stats[1].loss == again[1].loss,
        "rounded": all(bool((found[name].bfloat16() == tensor).all()) for name, tensor in rank.parameters.items())
        and rank.parameters.keys() == found.keys(),
    }


def new_rank(place: Any, machine: Any) -> Any:
    """A rank with the random weights of the test, the same in either precision."""
    from twinpod.records.model_shape import shape_from_huggingface
    from twinpod.trainer.megatron import build_rank
    from twinpod.trainer.optimizer import fill
    from twinpod.trainer.weights import load_random

    rank = build_rank(shape_from_huggingface(CONFIG), place, machine)
    fill(rank.optimizer, lambda weights: load_random(weights, rank.shape, place, seed=3))
    return rank


def flat(weights: Any) -> Any:
    """All of them as one float64 vector."""
    import torch

    return torch.cat([tensor.detach().double().reshape(-1) for tensor in weights.values()])


def movement(place: Any, half: Any, full: Any) -> float:
    """How much of what float32 moves the weights by, bfloat16 moves what it publishes by: along the same way."""
    from twinpod.trainer.step import train_iteration

    moved = []
    for machine in (half, full):
        rank = new_rank(place, machine)
        before = flat(rank.parameters).clone()
        for iteration in range(ITERATIONS):
            train_iteration(rank, make_batch(iteration, place), SETTINGS)
        moved.append(flat(rank.parameters) - before)
    return float(moved[0] @ moved[1] / (moved[1] @ moved[1]))


def not_finite(folder: Path, place: Any, machine: Any, control: Any) -> list[Any]:
    """What is said of numbers that are not finite, at each of the places where they are looked for."""
    import torch

    from twinpod.trainer.optimizer import fill
    from twinpod.trainer.snapshot import save_snapshot
    from twinpod.trainer.step import train_iteration

    def told(act: Callable[[], object]) -> str:
        try:
            act()
        except NumericsError as error:
            return error.line()
        return "nothing"

    def endless(one: Sample) -> Sample:
        return replace(one, advantage=math.inf) if one.trajectory_id in (5, 6) else one

    rank = new_rank(place, machine)
    before = flat(rank.parameters).clone()
    lines = [told(lambda: train_iteration(rank, make_batch(4, place, endless), SETTINGS))]
    same = bool((flat(rank.parameters) == before).all())
    hook = next(iter(rank.parameters.values())).register_hook(lambda gradient: gradient * math.inf)
    lines.append(told(lambda: train_iteration(rank, make_batch(3, place), SETTINGS)))
    hook.remove()
    same &= bool((flat(rank.parameters) == before).all())

    def unheard(one: Sample) -> Sample:
        return replace(one, logps=LogProbs([math.nan] * len(one.logps))) if one.trajectory_id == 9 else one

    lines.append(told(lambda: train_iteration(rank, make_batch(2, place, unheard), SETTINGS)))
    fill(rank.optimizer, lambda weights: [tensor.detach().zero_() for tensor in weights.values()] and None)
    zero_by_zero = replace(SETTINGS, eps=0.0, steps=1)
    lines.append(told(lambda: train_iteration(rank, make_batch(5, place), zero_by_zero)))
    lines.append(told(lambda: train_iteration(rank, make_batch(6, place), SETTINGS)))
    lines.append(told(lambda: save_snapshot(rank, control, folder, iteration=6, version=7)))
    written = [path.name for path in folder.parent.iterdir() if folder.name in path.name]
    return [same, lines, written, bool(torch.isfinite(before).all())]


def refused(rank: Any, control: Any) -> list[str]:
    """Orders around an iteration that failed so, and around first weights that are bad."""
    from twinpod.trainer.loop import Duties, State, execute
    from twinpod.trainer.memory import RankMemory
    from twinpod.trainer.wire import Replica

    def ruin() -> None:
        for parameter in rank.parameters.values():
            parameter.detach().fill_(math.nan)

    duties = Duties(
        rank=rank, control=control, replica=Replica(control, rank.place.dp_rank, 120.0),
        memory=RankMemory(rank, enabled=False), settings=SETTINGS, publishes=False,
        publisher=lambda: pytest.fail("unused"), fresh=ruin, config={}, tokenizer=None,
    )  # fmt: skip
    state, lines = State(loaded=True), []
    ruin()
    for verb, argument in ((Verb.TRAIN, ""), (Verb.PUBLISH, ""), (Verb.ONLOAD, '{"snapshot": "", "version": 1}')):
        order = Command(key="k", verb=verb, epoch=1, iteration=7, version=8, argument=argument, deadline_s=9.0)
        try:
            execute(duties, state, order, make_batch(7, rank.place))
        except TwinpodError as error:
            lines.append(f"{type(error).__name__}: {error.line()}")
    return [*lines, f"loaded: {state.loaded}"]


def mini_batches(place: Any, machine: Any) -> dict[str, Any]:
    """Groups 0 and 2 are one step, 1 and 3 the next, twice; beside it a batch of groups 0 and 2 alone, and the entropy
    of a model that knows nothing.
    """
    from twinpod.trainer.optimizer import fill
    from twinpod.trainer.step import train_iteration

    def in_two(one: Sample) -> Sample:
        return replace(one, mini_batch=one.group % 2, weight=1 / 8)

    def even(one: Sample) -> Sample | None:
        return one if one.group % 2 == 0 else None

    settings = replace(SETTINGS, learning_rate=1e-3)
    cut = train_iteration(new_rank(place, machine), make_batch(1, place, in_two), settings)
    alone = train_iteration(new_rank(place, machine), make_batch(1, place, even), replace(settings, steps=1))
    blank = new_rank(place, machine)
    fill(blank.optimizer, lambda weights: [tensor.detach().zero_() for tensor in weights.values()] and None)
    return {
        "cut": plain(cut.steps),
        "alone": plain(alone.steps),
        "entropy": train_iteration(blank, make_batch(1, place), replace(settings, steps=1)).entropy,
        "tokens": [cut.tokens, alone.tokens],
    }


def resumed(folder: Path, base: Path, place: Any, machine: Any, control: Any) -> dict[str, Any]:
    """Three ways to the state after two iterations: straight, over offload and onload, over a snapshot; and snapshots
    of one rank, one of them as they were before, in this layout.
    """
    import torch.distributed.checkpoint as dcp

    from twinpod.trainer.memory import RankMemory, observed_bytes
    from twinpod.trainer.snapshot import load_snapshot, save_snapshot
    from twinpod.trainer.step import train_iteration

    settings = replace(SETTINGS, learning_rate=1e-4)
    straight = new_rank(place, machine)
    train_iteration(straight, make_batch(1, place), settings)
    save_snapshot(straight, control, folder, iteration=1, version=2)
    memory = RankMemory(straight, enabled=True)
    assert memory.offload() == 0 == observed_bytes(straight)
    memory.onload()
    train_iteration(straight, make_batch(2, place), settings)

    again = new_rank(place, machine)
    load_snapshot(again, control, folder)
    train_iteration(again, make_batch(2, place), settings)
    unmoved = new_rank(place, machine)
    train_iteration(unmoved, make_batch(1, place), settings)
    train_iteration(unmoved, make_batch(2, place), settings)

    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    other = new_rank(place, machine)
    load_snapshot(other, control, base / "1-1x1")
    if control.size == 1:
        save_old(other, base / "old")
    control.gather(b"")
    old = new_rank(place, machine)
    load_snapshot(old, control, base / "old")
    return {
        "dtypes": sorted({str(one.properties.dtype) for one in saved.values()}),
        "resume": equal(straight, again),
        "offload": equal(straight, unmoved),
        "rounded": all(
            bool((parameter == straight.optimizer.gather()[name].bfloat16()).all())
            for name, parameter in straight.parameters.items()
        ),
        "layouts": holds(other, base / "1-1x1"),
        "old": bool((flat(old.optimizer.gather()) == flat(other.parameters)).all()),
    }


def equal(one: Any, other: Any) -> bool:
    """Main weights and parameters, to the bit."""
    mine, theirs = one.optimizer.gather(), other.optimizer.gather()
    return all(bool((mine[name] == theirs[name]).all()) for name in mine) and all(
        bool((one.parameters[name] == other.parameters[name]).all()) for name in mine
    )


def holds(rank: Any, folder: Path) -> bool:
    """The main weights are those of the snapshot, which is read anew here, tensor by tensor."""
    import torch
    import torch.distributed.checkpoint as dcp

    from twinpod.trainer.convert.copy import export_part
    from twinpod.trainer.convert.plan import full_tensors, plan_parts

    full = {name: torch.empty(shape) for name, shape in full_tensors(rank.shape).items()}
    dcp.load(full, storage_reader=dcp.FileSystemReader(folder))
    weights, same = rank.optimizer.gather(), True
    for part in plan_parts(rank.shape, rank.place):
        found = torch.empty(part.shape)
        export_part(weights, part, found)
        axis = part.axis or 0
        same &= bool((found == full[part.name].narrow(axis, part.start, part.shape[axis])).all())
    return same


def save_old(rank: Any, folder: Path) -> None:
    """A snapshot as it was before main weights were kept: the bfloat16 parameters."""
    import torch.distributed.checkpoint as dcp

    from twinpod.trainer.convert.copy import export_all
    from twinpod.trainer.convert.plan import plan_parts

    dcp.save(
        export_all(rank.parameters, plan_parts(rank.shape, rank.place)), storage_writer=dcp.FileSystemWriter(folder)
    )
    (folder / "snapshot.json").write_text('{"iteration": 1, "version": 2}')


# ---- in pytest
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All launches; the single rank first, because the others load what it wrote."""
    folder = tmp_path_factory.mktemp("precision")
    for ranks in LAYOUTS:
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, "--nproc-per-node", str(ranks), __file__, str(ranks), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return folder


def results(base: Path) -> list[dict[str, Any]]:
    """Of every rank of every layout."""
    found = [json.loads(path.read_text()) for path in sorted(base.glob("[0-9]*.json"))]
    assert len(found) == sum(ranks * len(layouts) for ranks, layouts in LAYOUTS.items())
    return found


def test_small_steps_of_many_iterations_add_up_in_bfloat16(base: Path) -> None:
    share = json.loads((base / "1-1x1-0.json").read_text())["share"]
    assert 0.9 < share < 1.1, "of the movement in float32; 0.015 when each iteration began from rounded weights"


def test_a_resume_is_bit_equal_to_never_having_stopped(base: Path) -> None:
    assert [(one["resume"], one["offload"], one["rounded"]) for one in results(base)] == [(True, True, True)] * 7


def test_a_snapshot_holds_the_main_weights_and_is_read_in_any_layout(base: Path) -> None:
    for one in results(base):
        assert one["dtypes"] == ["torch.float32"]
        assert one["layouts"], "what one rank has written, to the bit"


def test_numbers_that_are_not_finite_end_an_iteration_by_name_before_they_do_harm(base: Path) -> None:
    for one in results(base):
        unharmed, lines, written, _ = one["errors"]
        assert unharmed, "the weights are as they were before the step"
        beginnings = (
            "iteration 4, step 1: log-probs or loss of trajectories 5, 6 are not finite; the run goes on",
            "iteration 3, step 1: the norm of the gradient is ",
            "iteration 2, step 1: log-probs or loss of trajectories 9 are not finite",
            "iteration 5: ",
            "iteration 6, step 1: log-probs or loss of trajectories 0, 1, 2, 3, 4, 5, 6, 7 and ",
        )
        for line, beginning in zip(lines, beginnings, strict=False):
            assert line.startswith(beginning)
        assert lines[3].endswith("holds a number that is not finite")
        assert lines[5].endswith("such weights are no state to go on from")
        assert written == []


def test_what_has_failed_so_is_not_published_and_bad_first_weights_are_a_wrong_input(base: Path) -> None:
    for one in results(base):
        train, publish, onload, loaded = one["refused"]
        assert train.startswith("NumericsError: iteration 7, step 1: log-probs or loss of ")
        assert publish.startswith("ProtocolError: k: publish before the weights were loaded")
        assert onload.startswith("InputError: spec.model: ")
        assert onload.endswith("holds a number that is not finite; begin from weights that are finite")
        assert loaded == "loaded: False"


def test_a_mini_batch_is_a_step_over_its_own_groups_whatever_the_layout(base: Path) -> None:
    first = results(base)[0]["steps"]
    for one in results(base):
        steps = one["steps"]
        assert len(steps["cut"]) == 4
        for found, expected in zip([*steps["cut"], *steps["alone"]], [*first["cut"], *first["alone"]], strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert steps["cut"][0] == pytest.approx(steps["alone"][0], rel=1e-5)
        assert [step["log_ratio"] == 0.0 for step in steps["cut"]] == [True, False, False, False]
        assert steps["tokens"][0] > steps["tokens"][1], "the reference pass is over all of them"
        assert steps["entropy"] == pytest.approx(math.log(13), rel=1e-5)


def test_a_snapshot_without_main_weights_gives_them_from_its_weights(base: Path) -> None:
    assert all(one["old"] for one in results(base))


def test_megatrons_distributed_optimizer_keeps_its_main_weights_and_does_what_the_cpu_does(base: Path) -> None:
    found = [json.loads(path.read_text()) for path in sorted(base.glob("distributed-*.json"))]
    assert len(found) == 3
    assert [one["share"] for one in found] == pytest.approx([1.0, 0.5, 0.5], abs=0.1), (
        "divided over data-parallel ranks"
    )
    for one in found:
        assert one["norms"][0] == pytest.approx(one["norms"][1], rel=1e-3)
        assert one["moved"] > 1e-4
        assert one["difference"] < 1e-6
        assert (one["repeated"], one["rounded"]) == (True, True)


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), Path(sys.argv[2]))

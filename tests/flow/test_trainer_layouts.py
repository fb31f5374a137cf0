"""Real Megatron ranks on CPUs, in every layout: same losses, same gradients, same Hugging Face model, whatever the
layout.

One launch of torchrun per number of ranks; in it each layout and each model family in turn. The ranks write what they
saw into a folder, and the tests compare. This file is also the ranks' script.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.flow.rank_scene import Kept, make_hole

from twinpod.arena import Arena
from twinpod.errors import InputError
from twinpod.records.codec import dumps, loads
from twinpod.records.training import RankBatch, TrainSettings
from twinpod.records.weights import ShardRecord
from twinpod.testing.batches import rank_batches, sample
from twinpod.trainer.place import Place, Sizes

pytestmark = pytest.mark.timeout(900)  # three launches behind one fixture, on a machine that may be busy
TOP = Path(__file__).resolve().parents[2]
VOCAB = 13
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCAB,  # odd: padded for two tensor-parallel ranks
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": 1,
}
OPT: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 9,  # a position is what the longest sample needs
    "init_std": 0.2,
    "pad_token_id": None,  # transformers gives the padding token no gradient, and token 0 is in the samples
    "bos_token_id": None,
    "eos_token_id": 1,
    "dropout": 0.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {
        **COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": False,
        "head_dim": 12,
    },
    "llama": {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
    # Positions beyond the original context, in dimensions that are kept, blended and stretched.
    "llama3-rope": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 6.0,
            "low_freq_factor": 0.5,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 4,
        },
    },
    "yarn-rope": {
        **COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": False,
        "head_dim": 12,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4,
            "beta_fast": 0.6,
            "beta_slow": 0.02,
        },
    },
    "opt": OPT,
    "opt-untied": {**OPT, "tie_word_embeddings": False},
}
VARIED = ("qwen2", "qwen3", "opt")  # tied, untied with head norms, biases and learned positions
# ranks -> layouts (tensor, pipeline); what is left is data parallel
LAUNCHES: dict[int, list[tuple[int, int]]] = {1: [(1, 1)], 2: [(2, 1), (1, 2), (1, 1)], 4: [(2, 2), (2, 1)]}
VARIANTS = ("chunks", "Selective", "Full", "by sequence", "Full, by sequence")
LAYOUTS = [(ranks, *layout) for ranks, layouts in LAUNCHES.items() for layout in layouts]
TOKENS = [[2, 5, 7, 1, 9, 3, 12], [11, 0, 4, 4, 8, 6, 10]]
SETTINGS = TrainSettings(
    learning_rate=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.01,
    eps=1e-8,
    tau=0.1,
    temperature=0.8,
    mask="all",
    steps=2,
    clip_grad=1.0,
    micro_batch_tokens=48,
)


def make_batch(place: Any) -> RankBatch:
    """24 samples in 6 groups, lengths 1 to 6, versions 1 and 2: the part of one data-parallel rank."""
    rng = random.Random(5)
    samples = []
    for i in range(24):
        answer = rng.randrange(1, 7)
        samples.append(
            sample(
                i,
                i // 4,
                [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 4))],
                [rng.randrange(VOCAB) for _ in range(answer)],
                [-2.0 - rng.random() for _ in range(answer)],
                sorted(rng.randrange(1, 3) for _ in range(answer)),
                advantage=rng.uniform(-1, 1),
            )
        )
    batches = rank_batches(
        samples, iteration=1, version=2, group_size=4, ranks=place.dp_size, budget=SETTINGS.micro_batch_tokens
    )
    return batches[place.dp_rank]


# ---- in the ranks
# -------------------------------------------------------------------------------------------------------------


def rank_main(ranks: int, base: Path) -> None:
    """Every layout and family of one launch."""
    from megatron.core import parallel_state

    from twinpod.trainer.megatron import lay_out, start_ranks
    from twinpod.trainer.wire import Control

    machine = start_ranks(local_rank=0, dtype="float32")
    control = Control(60.0)
    for tensor, pipeline in LAUNCHES[ranks]:
        place = lay_out(Sizes(tensor=tensor, pipeline=pipeline), machine)
        for family in MODELS:
            out = base / f"{family}-{ranks}-{tensor}x{pipeline}"
            out.mkdir(parents=True, exist_ok=True)
            check_family(family, out, base, place, machine, control)
        parallel_state.destroy_model_parallel()


def check_family(family: str, out: Path, base: Path, place: Any, machine: Any, control: Any) -> None:
    """Train, export, publish, snapshot and offload one model; results go to `out`."""
    import torch

    from twinpod.records.model_shape import shape_from_huggingface
    from twinpod.trainer.convert.plan import plan_parts
    from twinpod.trainer.export import export_folder
    from twinpod.trainer.megatron import build_rank
    from twinpod.trainer.memory import RankMemory, observed_bytes
    from twinpod.trainer.publish import Publisher
    from twinpod.trainer.snapshot import load_snapshot, save_snapshot
    from twinpod.trainer.step import train_iteration
    from twinpod.trainer.weights import data_peers, load_folder, load_random

    rank = build_rank(shape_from_huggingface(MODELS[family]), place, machine)
    load_random(rank.parameters, rank.shape, place, seed=3)
    export_folder(rank, control, out / "hf-first", config=MODELS[family], tokenizer=None)
    stats = [train_iteration(rank, make_batch(place), probe(mask)) for mask in ("current", "all")]
    gradients = export_gradients(rank)
    variants = {name: check_variant(name, family, place, machine, gradients) for name in VARIANTS if family in VARIED}
    stats.append(train_iteration(rank, make_batch(place), SETTINGS))
    export_folder(rank, control, out / "hf", config=MODELS[family], tokenizer=None)
    export_folder(rank, control, out / "hf-files", config=MODELS[family], tokenizer=None, file_bytes=8000)
    logits = compute_logits(rank)

    save_snapshot(rank, control, out / "snapshot", iteration=7, version=8)
    before = {name: parameter.detach().clone() for name, parameter in rank.parameters.items()}
    if control.size == 1:
        make_hole(out / "hf-files", base / f"{family}-with-a-hole")
    memory = RankMemory(rank, enabled=True)
    assert memory.offload() == 0 == observed_bytes(rank)
    memory.onload()
    assert all(torch.equal(before[name], parameter) for name, parameter in rank.parameters.items()), (
        "offload and onload changed bits"
    )

    publisher = (
        Publisher(rank, out / f"rank-{control.rank}.arena", owner=f"pod/rank-{control.rank}", address="", threads=2)
        if place.dp_rank == 0
        else None
    )
    shard = publisher.publish(8) if publisher else None

    # Hugging Face -> Megatron -> Hugging Face, from the folder that the single rank wrote; then its snapshot, in this
    # layout.
    single = base / f"{family}-1-1x1"
    wipe(rank)
    read_bytes = load_folder(rank.parameters, rank.shape, place, single / "hf-files", data_peers(on_cpu=True))
    export_folder(rank, control, out / "hf-again", config=MODELS[family], tokenizer=None)
    refused = ""
    try:
        load_folder(rank.parameters, rank.shape, place, base / f"{family}-with-a-hole", data_peers(on_cpu=True))
    except InputError as error:
        refused = error.line()
    wipe(rank)
    note = load_snapshot(rank, control, single / "snapshot")
    export_folder(rank, control, out / "hf-resumed", config=MODELS[family], tokenizer=None)

    found = {
        "place": [place.tp_rank, place.pp_rank, place.dp_rank],
        "stats": [dumps(s) for s in stats],
        "variants": variants,
        "read_bytes": read_bytes,
        "refused": refused,
        "part_bytes": sum(4 * math.prod(part.shape) for part in plan_parts(rank.shape, place)),
        "note": dumps(note),
    }
    found["shard"] = dumps(shard) if shard else ""
    (out / f"rank-{control.rank}.json").write_text(json.dumps(found))
    np.savez(out / f"rank-{control.rank}.npz", **gradients, **({} if logits is None else {"logits": logits}))


def check_variant(name: str, family: str, place: Any, machine: Any, gradients: dict[str, Any]) -> dict[str, Any]:
    """The first weights' probe with other settings of memory; its gradients join `gradients` as `name:...`."""
    import torch

    from twinpod.records.model_shape import shape_from_huggingface
    from twinpod.trainer.megatron import Activations, build_rank
    from twinpod.trainer.step import train_iteration
    from twinpod.trainer.weights import load_random

    recompute = next((word for word in ("Selective", "Full") if word in name), "None")
    by_sequence = "by sequence" in name and place.tp_size > 1
    activations = Activations(recompute=recompute, sequence_parallel=by_sequence)
    rank = build_rank(shape_from_huggingface(MODELS[family]), place, machine, activations)
    rank.chunk_bytes = 100 if name == "chunks" else None  # the logits of a few positions, where all fitted before
    load_random(rank.parameters, rank.shape, place, seed=3)
    kept = Kept(parameter.untyped_storage().data_ptr() for parameter in rank.parameters.values())
    with torch.autograd.graph.saved_tensors_hooks(kept.hold, lambda held: held.tensor):
        stats = train_iteration(rank, make_batch(place), probe("all"))
    gradients |= {f"{name}:{key}": gradient for key, gradient in export_gradients(rank).items()}
    return {"stats": dumps(stats), "kept_bytes": kept.peak}


def probe(mask: str) -> TrainSettings:
    """One step that leaves the weights alone and the summed gradients behind."""
    import dataclasses

    return dataclasses.replace(SETTINGS, learning_rate=0.0, weight_decay=0.0, clip_grad=0.0, steps=1, mask=mask)


def export_gradients(rank: Any) -> dict[str, Any]:
    """Gradients in Hugging Face form: `name@axis@start` -> part."""
    from twinpod.trainer.convert.copy import export_all
    from twinpod.trainer.convert.plan import plan_parts

    parts = plan_parts(rank.shape, rank.place)
    exported = export_all({name: parameter.grad for name, parameter in rank.parameters.items()}, parts)
    return {f"{part.name}@{part.axis}@{part.start}": exported[part.name].numpy() for part in parts if part.owned}


def wipe(rank: Any) -> None:
    """So that what is loaded next is what is seen."""
    for parameter in rank.parameters.values():
        parameter.detach().fill_(float("nan"))


def compute_logits(rank: Any) -> Any:
    """float32[B, L, V/tp] of this rank on the last stage, else None."""
    import torch

    from twinpod.trainer.megatron import hidden_of, output_layer, run_schedule

    seen: list[Any] = []
    tokens_BL = torch.tensor(TOKENS)
    positions_BL = torch.arange(tokens_BL.shape[1]).expand_as(tokens_BL)

    def forward(batches: Any, model: Any) -> Any:
        next(batches)

        def keep(hidden_LBH: Any) -> Any:
            seen.append((hidden_LBH @ output_layer(rank).weight_WH.t()).transpose(0, 1).clone())
            return torch.zeros(()), None

        return hidden_of(rank, model, tokens_BL, positions_BL), keep

    with torch.no_grad():
        run_schedule(rank, forward, [0], rows=tokens_BL.shape[0], length=tokens_BL.shape[1], forward_only=True)
    return seen[0].numpy() if seen else None


# ---- in pytest
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All launches, one after the other; the single rank first, because the others load what it wrote."""
    folder = tmp_path_factory.mktemp("layouts")
    for ranks in LAUNCHES:
        launch(ranks, folder)
    return folder


def launch(ranks: int, folder: Path) -> None:
    """One torchrun with a deadline; its output is shown when it fails."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
    ]
    done = subprocess.run(
        [*command, __file__, str(ranks), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def results(base: Path, family: str, ranks: int, tensor: int, pipeline: int) -> list[dict[str, Any]]:
    """What each rank of a layout wrote, arrays included."""
    folder = base / f"{family}-{ranks}-{tensor}x{pipeline}"
    found = []
    for rank in range(ranks):
        with np.load(folder / f"rank-{rank}.npz") as arrays:
            found.append(
                {**json.loads((folder / f"rank-{rank}.json").read_text()), "arrays": dict(arrays), "folder": folder}
            )
    return found


def joined_gradients(ranks: list[dict[str, Any]], variant: str = "") -> dict[str, Any]:
    """Full gradients by Hugging Face name, from the parts of the ranks with data-parallel rank 0."""
    parts: dict[str, list[tuple[str, int, Any]]] = {}
    for rank in ranks:
        if rank["place"][2] == 0:
            for key, array in rank["arrays"].items():
                variant_of, _, rest = key.rpartition(":")
                if key != "logits" and variant_of == variant:
                    name, axis, start = rest.split("@")
                    parts.setdefault(name, []).append((axis, int(start), array))
    return {
        name: found[0][2]
        if found[0][0] == "None"
        else np.concatenate([a for _, _, a in sorted(found, key=lambda f: f[1])], axis=int(found[0][0]))
        for name, found in parts.items()
    }


def safetensors(folder: Path) -> dict[str, Any]:
    """All tensors of an exported folder."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def no_effect(family: str, name: str) -> bool:
    """Without rotary positions, a bias of the keys adds the same to all of a query's scores: softmax takes it out."""
    return family.startswith("opt") and name.endswith("k_proj.bias")


families = pytest.mark.parametrize("family", list(MODELS))
varied = pytest.mark.parametrize("family", VARIED)
layouts = pytest.mark.parametrize(("ranks", "tensor", "pipeline"), LAYOUTS)


@families
@layouts
def test_losses_and_gradients_do_not_depend_on_the_layout(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int
) -> None:
    reference = results(base, family, 1, 1, 1)
    found = results(base, family, ranks, tensor, pipeline)
    for one, other in zip(reference[0]["stats"], found[0]["stats"], strict=True):
        one, other = json.loads(one), json.loads(other)
        for key in ("loss", "grad_norm", "log_ratio", "weights_gap", "tokens", "on_policy_tokens"):
            assert other[key] == pytest.approx(one[key], abs=1e-4, rel=1e-4), key
    assert all(
        rank["stats"][0].split("reference_seconds")[0] == found[0]["stats"][0].split("reference_seconds")[0]
        for rank in found
    )
    expected, gradients = joined_gradients(reference), joined_gradients(found)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert np.abs(gradient - expected[name]).max() < 1e-4, name
        assert np.abs(expected[name]).max() > (0 if no_effect(family, name) else 1e-4), name


@varied
@layouts
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_saves_memory_changes_neither_loss_nor_gradient(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int, variant: str
) -> None:
    found = results(base, family, ranks, tensor, pipeline)
    kept, saved = json.loads(found[0]["stats"][1]), json.loads(found[0]["variants"][variant]["stats"])
    for key in ("loss", "grad_norm", "weights_gap"):
        assert saved[key] == pytest.approx(kept[key], abs=1e-5, rel=1e-5), key
    expected, gradients = joined_gradients(found), joined_gradients(found, variant)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert np.abs(gradient - expected[name]).max() < 1e-5, name


@varied
@layouts
def test_what_saves_memory_saves_it(base: Path, family: str, ranks: int, tensor: int, pipeline: int) -> None:
    """Bytes of activations at the end of a forward pass, on every rank."""
    for rank in results(base, family, ranks, tensor, pipeline):
        kept = {name: found["kept_bytes"] for name, found in rank["variants"].items()}
        assert kept["Full"] < kept["Selective"] < kept["chunks"]
        if tensor > 1:
            assert kept["Full, by sequence"] < kept["Full"]
            assert kept["by sequence"] < kept["chunks"]


@families
def test_loss_gradient_and_gap_are_those_of_transformers(base: Path, family: str) -> None:
    """The whole way, written out with another implementation: one step's loss, its gradient and the weights gap."""
    import torch
    from transformers import AutoModelForCausalLM

    (found,) = results(base, family, 1, 1, 1)
    model = AutoModelForCausalLM.from_pretrained(found["folder"] / "hf-first", attn_implementation="eager")
    loss, gaps = torch.zeros(()), []
    batch = make_batch(Place())
    for one in batch.samples:
        tokens_L = torch.tensor(list(one.tokens))
        logps_LV = torch.log_softmax(model(tokens_L[None]).logits[0, :-1] / SETTINGS.temperature, dim=-1)
        logps_R = logps_LV.gather(1, tokens_L[1:, None])[one.runs[0].count - 1 :, 0]
        loss = loss - one.advantage * logps_R.sum() / len(batch.samples)
        versions = [run.version for run in one.runs[1:] for _ in range(run.count)]
        each = zip(logps_R.tolist(), one.logps, versions, strict=True)
        gaps += [abs(ours - theirs) for ours, theirs, version in each if version == batch.version]
    loss.backward()
    stats = json.loads(found["stats"][1])
    assert stats["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert stats["weights_gap"] == pytest.approx(np.mean(gaps), abs=1e-5)
    gradients = joined_gradients([found])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        largest = 1e-2 if no_effect(family, name) else float(parameter.grad.abs().max())
        assert np.abs(gradients[name] - parameter.grad.numpy()).max() < 1e-4 * largest, name


@families
@layouts
def test_exported_model_has_megatrons_logits(base: Path, family: str, ranks: int, tensor: int, pipeline: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = results(base, family, ranks, tensor, pipeline)
    last = sorted(
        (r for r in found if r["place"][1] == pipeline - 1 and r["place"][2] == 0), key=lambda r: r["place"][0]
    )
    logits = np.concatenate([rank["arrays"]["logits"] for rank in last], axis=-1)[..., :VOCAB]
    model = AutoModelForCausalLM.from_pretrained(found[0]["folder"] / "hf", attn_implementation="eager")
    assert model.dtype == torch.float32
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    assert np.abs(logits - expected).max() < 1e-5


@families
@layouts
def test_conversion_there_and_back_is_bit_equal(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int
) -> None:
    folder = results(base, family, ranks, tensor, pipeline)[0]["folder"]
    expected = safetensors(base / f"{family}-1-1x1" / "hf")
    for again in (safetensors(folder / "hf-again"), safetensors(folder / "hf-resumed")):
        assert again.keys() == expected.keys()
        assert all(np.array_equal(again[name].view(np.uint8), expected[name].view(np.uint8)) for name in expected)


@families
@layouts
def test_first_weights_are_read_once_for_all_copies(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int
) -> None:
    """And by a rank of them no more than its share, give or take the largest part."""
    found = results(base, family, ranks, tensor, pipeline)
    for one in found:
        copies = [rank for rank in found if rank["place"][:2] == one["place"][:2]]
        assert len(copies) == ranks // (tensor * pipeline)
        assert sum(copy["read_bytes"] for copy in copies) == one["part_bytes"]
        assert one["read_bytes"] <= one["part_bytes"] * (1.0 if len(copies) == 1 else 0.7)


@families
@layouts
def test_what_one_copy_cannot_read_is_told_by_all_that_wait_for_it(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int
) -> None:
    """The broken file is the last stage's."""
    for rank in results(base, family, ranks, tensor, pipeline):
        assert ("cannot be read" in rank["refused"]) == (rank["place"][1] == pipeline - 1)


@families
@layouts
def test_a_large_export_is_several_files_and_an_index(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int
) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    folder = results(base, family, ranks, tensor, pipeline)[0]["folder"]
    names = sorted(path.name for path in (folder / "hf-files").glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    assert len(names) > 2
    expected, found = safetensors(folder / "hf"), {}
    for name in names:
        found |= load_file(folder / "hf-files" / name)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf-files")
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), expected[name]), name


@families
@layouts
def test_published_parts_are_the_exported_model(
    base: Path, family: str, ranks: int, tensor: int, pipeline: int
) -> None:
    found = results(base, family, ranks, tensor, pipeline)
    shards = [loads(ShardRecord, rank["shard"]) for rank in found if rank["shard"]]
    assert len(shards) == tensor * pipeline
    expected = safetensors(found[0]["folder"] / "hf")
    seen = dict.fromkeys(expected, 0)
    for shard in shards:
        with Arena.open(Path(shard.path), shard.layout) as arena:
            assert arena.digest(shard.slot) == shard.digest
            for part in shard.layout.parts:
                whole = expected[part.name]
                stop = part.start + part.shape[part.axis] if part.axis is not None else None
                piece = whole if part.axis is None else np.take(whole, range(part.start, stop), axis=part.axis)
                assert np.array_equal(np.array(arena.part(shard.slot, part)), piece), part.name
                seen[part.name] += piece.size
    assert all(seen[name] == array.size for name, array in expected.items())


def test_a_snapshot_remembers_what_it_is_of(base: Path) -> None:
    for ranks, tensor, pipeline in LAYOUTS:
        for rank in results(base, "qwen2", ranks, tensor, pipeline):
            assert json.loads(rank["note"]) == {"iteration": 7, "version": 8}
    assert not list(base.glob("*/.*")), "partial folders were left behind"


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), Path(sys.argv[2]))

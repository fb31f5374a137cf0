"""`twinpod fit`: parameters, activations, phases and advice, against what is known of real models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.api.load import check
from twinpod.api.model_folder import hf_config
from twinpod.api.pod_view import seen_from_pool
from twinpod.api.quantity import to_bytes
from twinpod.api.sizing.accelerators import ACCELERATORS, accelerator
from twinpod.api.sizing.activations import CHUNK_BYTES, kept, logits
from twinpod.api.sizing.advice import fit, largest_micro_batch, train_excess
from twinpod.api.sizing.nouns import GIB, Setup
from twinpod.api.sizing.parameters import stage_tensors, total
from twinpod.api.sizing.phases import (
    kv_token_bytes,
    offloaded,
    power_of_two,
    published_bytes,
    rank_state,
    shared_memory,
    train_holding,
)
from twinpod.api.sizing.read import setup_of
from twinpod.api.types import RLJob, RolloutPool
from twinpod.cli.__main__ import main
from twinpod.errors import EnvironmentFault, InputError
from twinpod.records.model_shape import Family, ModelShape, shape_from_huggingface
from twinpod.trainer.place import Sizes, check_sizes
from twinpod_operator.render import Platform, render_job
from twinpod_operator.render_pool import render_pool
from twinpod_sidecar.settings import check_shared_memory, needed_shared_memory

TOP = Path(__file__).resolve().parents[2]
MODELS = Path(__file__).parent / "models"
SAMPLES = TOP / "manifests/samples"
H100 = accelerator("h100-80gb")


def model(name: str) -> ModelShape:
    return shape_from_huggingface(json.loads((MODELS / f"{name}.json").read_text()))


def setup(name: str = "Qwen3-8B", **changed: Any) -> Setup:
    values: dict[str, Any] = {
        "shape": model(name), "item": 2, "replicas": 1, "accelerators": 8, "tensor": 4, "pipeline": 1, "data": 2,
        "micro_tokens": 8192, "context": 8192, "samples": 1024, "recompute": "None", "sequence_parallel": False,
        "offload": True, "local_layers": False,
        "engine_tensor": 8, "engine_data": 1, "kv_tokens": 524_288, "memory_fraction": 0.8, "max_running": 512,
    }  # fmt: skip
    return Setup(**values | changed)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen3-1.7B", 1_720_574_976),
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-32B", 32_762_123_264),
        ("Llama-3.1-70B-Instruct", 70_553_706_496),
    ],
)
def test_models_have_the_parameters_that_their_makers_say(name: str, parameters: int) -> None:
    assert total(model(name)) == parameters


def _small(family: Family, *, tied: bool) -> ModelShape:
    like = model("Qwen3-8B")
    heads = 8 if family is Family.OPT else 4
    sizes = {"hidden": 64, "layers": 4, "heads": 8, "kv_heads": heads, "head_dim": 8, "ffn": 96, "vocab": 101}
    return replace(like, family=family, tied=tied, max_positions=32, **sizes)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (4, 4)])
def test_a_rank_has_the_parameters_that_the_trainer_plans(
    family: Family, tied: bool, tensor: int, pipeline: int
) -> None:
    from twinpod.trainer.convert.plan import plan_parts
    from twinpod.trainer.place import Place

    shape = _small(family, tied=tied)
    padding = (shape.padded_vocab(tensor) - shape.vocab) * shape.hidden
    for stage in range(pipeline):
        place = Place(tp_rank=0, tp_size=tensor, pp_rank=stage, pp_size=pipeline)
        planned = sum(math.prod(part.shape) for part in plan_parts(shape, place))
        counted = sum(stage_tensors(shape, tensor, pipeline, stage))
        assert padding < shape.hidden * tensor  # on the last rank only, so not on this one
        assert counted == planned


def test_a_plain_layer_keeps_what_the_paper_counts() -> None:
    """Korthikanti et al. 2022: 34 bytes a token and unit of hidden size, of which 2 are the masks of dropout."""
    hidden = 1024
    plain = replace(
        model("Qwen3-8B"),
        family=Family.OPT,
        hidden=hidden,
        heads=16,
        kv_heads=16,
        head_dim=64,
        ffn=4 * hidden,
        layers=10,
    )
    tokens = 4096
    found = kept(setup(shape=plain, tensor=1, data=8), tokens).layers
    statistics = 10 * tokens * plain.heads * 4  # the sums of softmax that fused attention keeps
    assert found - statistics == 10 * tokens * hidden * 32
    divided = kept(setup(shape=plain, tensor=8, data=1), tokens).layers
    assert divided == 10 * tokens * (
        hidden * (8 + 24 // 8) + plain.heads // 8 * 4
    )  # 10 + 24/t of the paper, less masks


@pytest.mark.parametrize("cpu", [False, True])
def test_recompute_and_sequence_parallelism_keep_less(cpu: bool) -> None:
    one = setup(accelerators=0 if cpu else 8, local_layers=cpu)
    none, selective, full = (kept(replace(one, recompute=way), 8192).layers for way in ("None", "Selective", "Full"))
    assert full < selective < none
    assert full == 8192 * one.shape.layers * one.shape.hidden * 2
    assert kept(replace(one, recompute="Full", sequence_parallel=True), 8192).layers == full // 4
    mlps = 8192 * one.shape.layers * 5 * one.shape.ffn // 4 * 2
    scores = 8192 * one.shape.layers * one.shape.heads // 4 * 8192 * (4 + 2)
    assert none - selective == mlps + (scores if cpu else 0)


def test_logits_are_a_chunk_however_long_the_micro_batch() -> None:
    assert logits(setup(), 8192) == logits(setup(), 1 << 20) == 2 * CHUNK_BYTES["cuda"]
    assert logits(setup(item=4), 256) == 256 * 151_936 // 4 * 4


def test_the_chunk_is_the_trainer_s() -> None:
    from twinpod.trainer import logps

    assert CHUNK_BYTES == logps.CHUNK_BYTES


def test_mixed_precision_costs_18_bytes_a_parameter_and_divides_12_over_the_copies() -> None:
    alone = rank_state(setup(tensor=1, data=1, accelerators=1, engine_tensor=1))
    count = total(model("Qwen3-8B"))
    assert alone == {"weights": 2 * count, "main weights": 4 * count, "gradients": 4 * count, "moments": 8 * count}
    eight = rank_state(setup(tensor=1, data=8, replicas=4, accelerators=8))
    assert sum(eight.values()) == 6 * count + 12 * -(-count // 32)


def test_float32_on_a_cpu_costs_16_bytes_a_parameter() -> None:
    state = rank_state(setup(item=4, accelerators=0, tensor=1, data=1))
    assert sum(state.values()) == 16 * total(model("Qwen3-8B"))


def test_keys_and_values_are_divided_down_to_one_head() -> None:
    token = 2 * 36 * 128 * 2
    assert [kv_token_bytes(setup(engine_tensor=ranks)) for ranks in (1, 2, 8, 16)] == [
        8 * token,
        4 * token,
        token,
        token,
    ]


def test_shared_memory_holds_two_slots_of_the_weights() -> None:
    one = setup()
    assert 2 * published_bytes(one) < shared_memory(one) < 2 * published_bytes(one) + GIB


def test_pinned_memory_comes_in_powers_of_two() -> None:
    assert [power_of_two(n) for n in (0, 1, 3, 4096, 4097)] == [0, 1, 4, 4096, 8192]
    one = setup(tensor=1, data=1)
    assert published_bytes(one) <= offloaded(replace(one, item=2)) <= 4 * published_bytes(one) + 8 * total(one.shape)


@pytest.mark.parametrize("name", ["Qwen3-1.7B", "Qwen3-8B"])
def test_the_largest_micro_batch_is_the_largest(name: str) -> None:
    one = setup(name)
    most = largest_micro_batch(one, H100)
    sizes = [sum(amount.nbytes for amount in train_holding(one, tokens)) for tokens in (most, most + 256)]
    assert sizes[0] <= H100.usable < sizes[1]


def test_a_model_that_cannot_fit_has_no_micro_batch() -> None:
    assert largest_micro_batch(setup("Llama-3.1-70B-Instruct", tensor=1, data=8), H100) == 0


def test_advice_goes_from_the_cheapest_to_the_dearest_and_leaves_out_what_is_not_needed() -> None:
    def fields(**changed: Any) -> list[str]:
        return [change.field.rpartition(".")[2] for change in fit(setup(**changed), H100).changes]

    assert fields() == []
    assert fields(micro_tokens=65_536) == ["microBatchTokens"]
    assert fields(context=65_536) == ["sequenceParallel", "recompute"]
    assert fields(tensor=1, data=8, context=65_536) == ["recompute", "tensorParallel"]
    assert fields(kv_tokens=8_388_608) == ["kvTokens"]
    assert fields(shape=model("Llama-3.1-70B-Instruct"), tensor=1, data=8, engine_tensor=1, kv_tokens=65_536) == [
        *("recompute", "tensorParallel", "replicas"),
        "tensorParallel",
    ]


def test_advice_that_is_taken_makes_it_fit() -> None:
    long = setup(context=65_536)
    assert train_excess(long, H100) > 0
    assert not fit(long, H100).fits
    assert fit(replace(long, recompute="Full"), H100).fits


def test_shared_memory_and_host_memory_are_told_with_both_numbers() -> None:
    found = fit(setup(), H100, shared_memory_given=GIB, host_bytes=100 * GIB)
    assert found.problems == (
        "/dev/shm needs 31.0 GiB, hybrid.sharedMemory is 1.0 GiB",
        "a pod needs 170.5 GiB of memory (rollout), it may have 100.0 GiB",
    )
    assert found.changes[0].value == "32Gi"


def test_an_accelerator_is_found_by_its_name_or_refused_with_all_names() -> None:
    assert accelerator("H100-80GB") is ACCELERATORS["h100-80gb"]
    assert accelerator("b200").name == "b200-180gb"
    with pytest.raises(InputError, match=r"'a100' is not known; use one of a100-40gb, a100-80gb"):
        accelerator("a100")


def test_the_command_prints_a_table_and_its_exit_code_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    sample, config = str(SAMPLES / "gpu/qwen3-8b.yaml"), str(MODELS / "Qwen3-8B.json")
    assert main(["fit", sample, "--config", config]) == 0
    printed = capsys.readouterr().out
    assert "qwen3-8b: 8.19 billion parameters, 1 pod of 8 x h100-80gb (79.1 GiB)" in printed
    assert "forward, backward" in printed
    assert main(["fit", sample, "--config", config, "--accelerator", "l4-24gb", "--json"]) == 1
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["job"], answer["fits"], answer["accelerator"]["name"]) == ("qwen3-8b", False, "l4-24gb")
    assert answer["changes"]


def test_a_job_on_the_cpu_is_told_the_memory_of_its_pod(capsys: pytest.CaptureFixture[str]) -> None:
    sample = str(SAMPLES / "reverse-letters.yaml")
    assert main(["fit", sample]) == 0
    assert "GiB, memory of a pod" in capsys.readouterr().out
    assert main(["fit", sample, "--memory", "1Gi"]) == 1
    assert "it may have 1.0 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--config", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--memory", "lots"], '--memory: "lots" is not a quantity'),
        (["--accelerator", "tpu"], "--accelerator: 'tpu' is not known"),
        ([], "give the model's config.json with --config FILE"),
    ],
)
def test_what_cannot_be_read_is_refused(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = [] if not more or more[0] == "--config" else ["--config", str(MODELS / "Qwen3-8B.json")]
    assert main(["fit", str(SAMPLES / "gpu/qwen3-8b.yaml"), *config, *more]) == 2
    assert said in capsys.readouterr().err


GPU_SAMPLES = {
    "qwen3-1-7b": ("Qwen3-1.7B", 1),
    "qwen3-8b": ("Qwen3-8B", 8),
    "qwen3-32b": ("Qwen3-32B", 16),
    "llama-3-1-70b": ("Llama-3.1-70B-Instruct", 64),
}


def test_there_is_a_test_for_every_sample_for_gpus() -> None:
    assert {path.stem for path in (SAMPLES / "gpu").glob("*.yaml")} == set(GPU_SAMPLES)


@pytest.mark.parametrize("name", list(GPU_SAMPLES))
def test_a_sample_for_gpus_is_short_valid_and_fits_the_gpus_that_it_names(name: str) -> None:
    text = (SAMPLES / "gpu" / f"{name}.yaml").read_text()
    job = check(yaml.safe_load(text))
    assert isinstance(job, RLJob)
    assert (job.metadata.name, len(text.splitlines()) <= 30) == (name, True)
    config, gpus = GPU_SAMPLES[name]
    hybrid = job.spec.hybrid
    one = setup_of(job, model(config))
    assert (hybrid.replicas * hybrid.accelerators, hybrid.world_size) == (gpus, gpus)
    assert one.engine_ranks == hybrid.accelerators
    assert job.spec.model.dtype == "bfloat16"
    assert hybrid.shared_memory is not None
    given = to_bytes(hybrid.shared_memory)
    found = fit(one, H100, shared_memory_given=given)
    assert (found.fits, found.problems) == (True, ())
    assert given <= 1.3 * found.shared_memory
    assert found.sequences >= 64
    assert to_bytes(job.spec.storage.snapshots.size) > 5 * total(one.shape) * 4 + total(one.shape) * 2
    check_sizes(model(config), Sizes(tensor=one.tensor, pipeline=one.pipeline), hybrid.world_size)


def test_a_sample_for_gpus_does_not_fit_where_it_cannot() -> None:
    job = check(yaml.safe_load((SAMPLES / "gpu/llama-3-1-70b.yaml").read_text()))
    assert isinstance(job, RLJob)
    assert not fit(setup_of(job, model("Llama-3.1-70B-Instruct")), accelerator("a100-40gb")).fits


def _job(model_spec: dict[str, Any], **hybrid: Any) -> RLJob:
    job = yaml.safe_load((SAMPLES / "reverse-letters.yaml").read_text())
    job["spec"]["hybrid"] = hybrid
    job["spec"]["model"] = model_spec or job["spec"]["model"]
    found = check(job)
    assert isinstance(found, RLJob)
    return found


def _memory_volumes(job: RLJob, pool: RolloutPool | None = None) -> list[dict[str, Any]]:
    platform = Platform(master_image="m:1", trainer_image="t:1", inference_image="i:1", etcd=("etcd:2379",))
    manifests = render_job(job, platform=platform, uid="u", attempt=1)
    if pool is not None:
        manifests = render_pool(pool, job, platform=platform, job_uid="u", pool_uid="p")
    pods = [one for one in manifests if one["kind"] == "Pod"]
    return [volume["emptyDir"] for pod in pods for volume in pod["spec"]["volumes"] if volume["name"] == "shm"]


def test_shared_memory_that_is_left_out_follows_from_the_model() -> None:
    job = _job({})
    assert job.spec.hybrid.shared_memory == "80Mi"
    assert to_bytes("80Mi") > 2 * 408_576 * 4 + 64 * 2**20
    assert _memory_volumes(job) == [{"medium": "Memory", "sizeLimit": "80Mi"}]
    assert _job({}, sharedMemory="1Gi").spec.hybrid.shared_memory == "1Gi"
    assert total(shape_from_huggingface(hf_config(job))) == 408_576
    assert needed_shared_memory(job) == to_bytes("80Mi")


def test_shared_memory_with_a_model_folder_is_what_the_pod_s_memory_allows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((MODELS / "Qwen3-8B.json").read_text())
    job = _job({"from": str(tmp_path), "dtype": "bfloat16"})
    assert job.spec.hybrid.shared_memory is None
    assert _memory_volumes(job) == [{"medium": "Memory"}]
    with pytest.raises(EnvironmentFault, match=r"shared memory too small: needs 32060596 MiB, has \d+ MiB"):
        check_shared_memory(tmp_path, needed_shared_memory(_job({"from": str(tmp_path), "dtype": "bfloat16"})) << 10)


def test_a_pool_has_the_shared_memory_of_its_job() -> None:
    head = {"apiVersion": "twinpod.dev/v1alpha1", "kind": "RolloutPool", "metadata": {"name": "more"}}
    own, bare = (check(head | {"spec": {"job": "reverse-letters", **more}}) for more in ({"sharedMemory": "3Gi"}, {}))
    assert isinstance(own, RolloutPool)
    assert isinstance(bare, RolloutPool)
    assert _memory_volumes(_job({}), own) == [{"medium": "Memory", "sizeLimit": "3Gi"}]
    assert _memory_volumes(_job({}), bare) == [{"medium": "Memory", "sizeLimit": "80Mi"}]
    assert seen_from_pool(_job({}), bare).spec.hybrid.shared_memory == "80Mi"

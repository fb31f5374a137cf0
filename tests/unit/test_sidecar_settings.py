"""From job and environment to what the halves start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.api.types import RLJob
from twinpod.errors import EnvironmentFault
from twinpod.inference.sglang_engine import server_args
from twinpod.records.life import LifeCycle
from twinpod.testing.halves import environment_in
from twinpod_sidecar.settings import check_shared_memory, inference_settings, threads_a_process, training_settings


def job(**hybrid: object) -> RLJob:
    shape = {
        "architecture": "qwen2",
        "hiddenSize": 32,
        "layers": 2,
        "heads": 2,
        "ffnSize": 32,
        "maxPositions": 48,
    }
    spec = {
        "iterations": 1,
        "model": {"config": shape, "tokenizer": {"characters": "ab="}},
        "dataset": {"reasoningGym": {"name": "spell_backward"}},
        "algorithm": {"groupsPerIteration": 1, "learningRate": "1e-3"},
        "rollout": {"maxTokens": 4},
        "reward": {"kind": "prefix"},
        "hybrid": hybrid,
    }
    document = {"apiVersion": "twinpod.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "job"}, "spec": spec}
    return RLJob.model_validate(document)


def argument(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_ranks_of_one_pod_meet_on_loopback(tmp_path: Path) -> None:
    settings = training_settings(
        job(trainer={"tensorParallel": 2}), environment_in(tmp_path), {"PATH": "/bin"}, free_port=4711, attempt=9
    )
    argv, env = settings.ranks.argv, settings.ranks.env
    assert argument(argv, "--nproc-per-node") == "2"
    assert (argument(argv, "--master-addr"), argument(argv, "--master-port")) == ("127.0.0.1", "4711")
    assert (env["TWINPOD_LINK"], env["TWINPOD_ATTEMPT"], env["PATH"]) == ("localhost:7401", "9", "/bin")


def test_ranks_of_several_pods_meet_at_the_first(tmp_path: Path) -> None:
    settings = training_settings(job(replicas=3), environment_in(tmp_path), {}, free_port=4711, attempt=1)
    argv = settings.ranks.argv
    assert (argument(argv, "--nnodes"), argument(argv, "--node-rank")) == ("3", "0")
    assert argument(argv, "--master-addr") == "job-hybrid-0.job.test.svc"
    assert argument(argv, "--master-port") == "7420"
    assert settings.leader == ""


def test_the_ranks_of_another_pod_follow_the_first(tmp_path: Path) -> None:
    second = replace(environment_in(tmp_path), pod="job-hybrid-1")
    settings = training_settings(job(replicas=3), second, {}, free_port=4711, attempt=1)
    assert argument(settings.ranks.argv, "--node-rank") == "1"
    assert argument(settings.ranks.argv, "--master-addr") == "job-hybrid-0.job.test.svc"
    assert settings.leader == "job-hybrid-0"


def test_the_engine_is_started_as_the_job_says(tmp_path: Path) -> None:
    hybrid = job(lifeCycle="Keep", inference={"kvTokens": 100, "maxRunning": 7})
    settings = inference_settings(hybrid, environment_in(tmp_path), {})
    engine = settings.engine
    assert settings.life is LifeCycle.KEEP
    assert (engine.kv_tokens, engine.max_running, engine.context_length, engine.accelerators) == (100, 7, 48, False)
    assert settings.standby.pipes
    assert settings.standby.argv[1:] == ("-m", "twinpod.inference.standby")


def test_threads_asked_for_by_the_person_stay(tmp_path: Path) -> None:
    settings = inference_settings(job(), environment_in(tmp_path), {"OMP_NUM_THREADS": "5"})
    assert settings.worker.env["OMP_NUM_THREADS"] == "5"


def test_shared_memory_is_measured_where_it_is_mounted(tmp_path: Path) -> None:
    check_shared_memory(tmp_path / "not-there-yet", 4096)
    with pytest.raises(EnvironmentFault, match=r"shared memory too small: needs 1099511627776 MiB, has \d+ MiB"):
        check_shared_memory(tmp_path, 2**60)


def test_several_engines_share_the_cores_and_sglang_sizes_the_cache_on_accelerators(tmp_path: Path) -> None:
    settings = inference_settings(job(inference={"dataParallel": 2}), environment_in(tmp_path), {})
    assert settings.engines == 2
    assert settings.standby.env["OMP_NUM_THREADS"] == threads_a_process(2)
    gpus = job(accelerators=4, inference={"tensorParallel": 2, "memoryFraction": "0.7"})
    settings = inference_settings(gpus, environment_in(tmp_path), {})
    assert (settings.engines, settings.engine.memory_fraction) == (2, 0.7)
    arguments = server_args(settings.engine)
    assert "max_total_tokens" not in arguments
    assert arguments["mem_fraction_static"] == 0.7


@pytest.mark.parametrize(("life", "spawn"), [("Restart", False), ("Sleep", True)])
def test_a_standby_whose_engines_will_be_executed_anew_imports_nothing(tmp_path: Path, life: str, spawn: bool) -> None:
    settings = inference_settings(job(accelerators=1, lifeCycle=life), environment_in(tmp_path), {})
    assert ("--spawn" in settings.standby.argv) == settings.engine.sleep == spawn

"""Two hybrid pods and a pool for real, in local mode: torchrun over both pods, each engine on its own pod's weights, a
pool pod that fetches them over gRPC, joins, generates and goes, while the job goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flow.survival_scene import until

from twinpod.errors import InputError
from twinpod.master.inspect import inspect
from twinpod.records.run import RunReport

pytestmark = [pytest.mark.timeout(1500), pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root")]
START_S, STEP_S = 600.0, 300.0  # on a machine that is busy with other things
MANIFEST = """
apiVersion: twinpod.dev/v1alpha1
kind: RLJob
metadata: {name: pair}
spec:
  iterations: 1000
  model:
    config: {architecture: qwen2, hiddenSize: 16, layers: 1, heads: 2, kvHeads: 2, ffnSize: 32, maxPositions: 64}
    tokenizer: {characters: "abcd="}
  dataset:
    entryPoint: {target: "twinpod.sampling.letters:reverse", settings: {letters: 3, alphabet: 4}}
    template: "{prompt}="
    heldOut: 4
  algorithm: {groupSize: 4, groupsPerIteration: 8, learningRate: "5e-4"}
  rollout: {maxTokens: 24, segmentTokens: 12}
  reward: {kind: prefix}
  hybrid: {replicas: 2, sharedMemory: 64Mi, lifeCycle: Keep, inference: {kvTokens: 2048}}
  storage: {snapshotEvery: 5}
  failurePolicy: {maxRestarts: 0}
---
apiVersion: twinpod.dev/v1alpha1
kind: RolloutPool
metadata: {name: helpers}
spec: {job: pair, replicas: 0, sharedMemory: 64Mi, inference: {kvTokens: 2048}}
"""
TWINPOD = (sys.executable, "-m", "twinpod.cli")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    (tmp_path / "pair.yaml").write_text(MANIFEST)
    folder = tmp_path / "run"
    command = [*TWINPOD, "run", str(tmp_path / "pair.yaml"), "--local", "--no-live", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process, folder
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=90)
    finally:
        process.kill()


def test_two_pods_train_as_one_and_a_pool_helps_while_it_is_there(
    run: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = run

    def seen(condition: object, within_s: float) -> RunReport:
        """The first report for which the condition holds."""

        def look() -> RunReport | None:
            assert process.poll() is None, process.communicate()[0]
            try:
                report = inspect(folder)
            except InputError:
                return None  # no books yet
            return report if condition(report) else None  # type: ignore[operator]

        found = until(look, within_s, every_s=0.5)
        assert found is not None, scaled(folder, "helpers", "0").stdout
        return found

    assert until((folder / "control.sock").exists, START_S)
    assert "its pools are: helpers" in scaled(folder, "nobody", "1").stderr
    assert "runs 0 to 16" in scaled(folder, "helpers", "17").stderr
    assert scaled(folder, "helpers", "1").stdout == "helpers: 0 → 1 pods\n"

    report = seen(lambda one: segments(one, "helpers-rollout-0") > 0, START_S)
    with_help = report.iterations_committed
    report = seen(lambda one: one.iterations_committed >= with_help + 2, STEP_S)

    assert scaled(folder, "helpers", "0").stdout == "helpers: 1 → 0 pods\n"
    left = segments(report, "helpers-rollout-0")
    helper = folder / "logs/helpers-rollout-0.inference.log"
    assert until(lambda: "EngineGone" in helper.read_text(), STEP_S)
    gone = inspect(folder).iterations_committed + 1  # it may have given something to the one under way
    report = seen(lambda one: one.iterations_committed >= gone + 2, STEP_S)
    assert all(one.pod != "helpers-rollout-0" for one in report.pods_by_iteration if one.iteration > gone)
    assert segments(report, "helpers-rollout-0") >= left
    for pod in ("pair-hybrid-0", "pair-hybrid-1"):
        assert segments(report, pod) > 0
    assert (report.duplicate_tokens, report.chains_broken, report.trained_twice_in_a_pass) == (0, 0, 0)
    for one in report.iterations:  # the engines' log-probs are the trainer's, on whichever pod
        gap = json.loads(one.stats)["weights_gap"] if one.stats else 0.0
        assert gap is None or gap < 1e-3


def segments(report: RunReport, pod: str) -> int:
    return sum(one.count for one in report.pods if one.name == pod)


def scaled(folder: Path, pool: str, replicas: str) -> subprocess.CompletedProcess[str]:
    command = [*TWINPOD, "scale", str(folder), pool, replicas]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

"""A user's own data file and reward in a real local run: they lie beside the manifest, hang, grow and change."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinpod.master.inspect import inspect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root"),
]
MANIFEST = """
apiVersion: twinpod.dev/v1alpha1
kind: RLJob
metadata: {name: own}
spec:
  iterations: 2
  model:
    config: {architecture: qwen2, hiddenSize: 16, layers: 1, heads: 2, kvHeads: 2, ffnSize: 32, maxPositions: 64}
    tokenizer: {characters: "abcd="}
  dataset: {jsonLines: {path: DATA}, template: "{prompt}=", heldOut: 4}
  algorithm: {groupSize: 4, groupsPerIteration: 4, learningRate: "5e-4"}
  rollout: {maxTokens: 12}
  reward: {kind: entryPoint, target: "own_rewards:score", timeoutSeconds: 3, processes: 2}
  hybrid: {sharedMemory: 16Ki, lifeCycle: Keep, inference: {kvTokens: 2048}}
  storage: {snapshotEvery: 1}
  failurePolicy: {maxRestarts: 0}
"""
REWARD = """
import itertools
import numpy as np
from twinpod.reward.port import Verdict

ASKED = itertools.count(1)

def score(prompt, text):
    print("judging", prompt.prompt_id)
    if next(ASKED) == 3:
        while True:
            pass
    return Verdict(reward=np.float32(len(text) / 12), correct=np.bool_(len(text) == 12))
"""


def test_own_data_and_reward_hang_grow_and_change_and_the_run_goes_on(tmp_path: Path) -> None:
    own, elsewhere, out = tmp_path / "own", tmp_path / "elsewhere", tmp_path / "run"
    own.mkdir()
    elsewhere.mkdir()
    (own / "own_rewards.py").write_text(REWARD)
    words = ["".join(letters) for letters in itertools.product("abcd", repeat=3)]
    manifest = MANIFEST.replace("DATA", str(own / "words.jsonl"))

    def start(count: int, *changes: tuple[str, str], edit: int = -1) -> subprocess.CompletedProcess[str]:
        nonlocal manifest
        for old, new in changes:
            assert old in manifest
            manifest = manifest.replace(old, new)
        rows = [{"prompt": word, "answer": word[::-1]} for word in words[:count]]
        if edit >= 0:
            rows[edit]["answer"] = "aaa"
        (own / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (own / "job.yaml").write_text(manifest)
        command = [str(Path(sys.executable).parent / "twinpod"), "run", str(own / "job.yaml"), "--local", "--no-live"]
        return subprocess.run(
            [*command, "--out", str(out)], cwd=elsewhere, capture_output=True, text=True, check=False, timeout=600
        )

    small = start(24)
    assert small.returncode == 2, small.stdout + small.stderr
    assert "raise spec.hybrid.sharedMemory" in small.stdout
    done = start(24, ("sharedMemory: 16Ki", "sharedMemory: 64Mi"))
    assert done.returncode == 0, done.stdout + done.stderr
    first = inspect(out)
    counts = {one.name: one.count for one in first.counters}
    assert (first.state, first.iterations_committed) == ("Succeeded", 2)
    assert counts["judges_late"] >= 1
    assert 0 < first.iterations[-1].reward <= 1

    more = (("iterations: 2", "iterations: 4"), ("groupSize: 4", "groupSize: 2"), ("maxTokens: 12", "maxTokens: 10"))
    gone_on = start(44, *more, ('learningRate: "5e-4"', 'learningRate: "1e-4"'))
    assert gone_on.returncode == 0, gone_on.stdout + gone_on.stderr
    assert "algorithm.groupSize was 4, is 2 from the next iteration on" in gone_on.stdout
    second = inspect(out)
    assert (second.state, second.iterations_committed, second.line) == ("Succeeded", 4, 1)
    changed = {(one.iteration, one.field) for one in second.settings_changes}
    assert {(3, "algorithm.groupSize"), (3, "algorithm.learningRate"), (3, "rollout.maxTokens")} <= changed
    assert second.iterations[-1].samples <= 8

    edited = start(44, ("iterations: 4", "iterations: 5"), edit=6)
    assert edited.returncode == 2, edited.stdout
    assert "words.jsonl:7: has another answer or difficulty than when the run began" in edited.stdout + edited.stderr
    assert inspect(out).iterations_committed == 4

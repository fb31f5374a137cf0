"""A job run twice with one seed, in local mode: the same answers to the last bit, by engines on a CPU."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = [pytest.mark.timeout(1500), pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root")]
MANIFEST = """
apiVersion: twinpod.dev/v1alpha1
kind: RLJob
metadata: {name: twice}
spec:
  iterations: 2
  seed: 5
  model:
    config: {architecture: qwen2, hiddenSize: 16, layers: 1, heads: 2, kvHeads: 2, ffnSize: 32, maxPositions: 256}
    tokenizer: {characters: "abcd="}
  dataset:
    entryPoint: {target: "twinpod.sampling.letters:reverse", settings: {letters: 3, alphabet: 4}}
    template: "{prompt}="
    heldOut: 4
  algorithm: {groupSize: 4, groupsPerIteration: 8, learningRate: "5e-4"}
  rollout: {maxTokens: 100}
  reward: {kind: prefix}
  hybrid: {sharedMemory: 64Mi, lifeCycle: Keep, inference: {kvTokens: 8192}}
"""


def segments(manifest: Path, folder: Path) -> dict[tuple[int, int], tuple[object, ...]]:
    """What a run generated, by trajectory and index."""
    command = [sys.executable, "-m", "twinpod.cli", "run", str(manifest), "--local", "--no-live", "--no-check"]
    done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, timeout=700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(sqlite3.connect(f"file:{folder}/state/books.sqlite?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT trajectory_id, idx, version, stop, tokens, logps FROM segments").fetchall()
    return {row[:2]: row[2:] for row in rows}


def test_the_same_seed_twice_gives_the_same_segments(tmp_path: Path) -> None:
    manifest = tmp_path / "twice.yaml"
    manifest.write_text(MANIFEST)
    first, second = segments(manifest, tmp_path / "first"), segments(manifest, tmp_path / "second")
    assert len(first) == 64
    assert {one[0] for one in first.values()} == {1, 2}, "trained in between"
    assert first == second

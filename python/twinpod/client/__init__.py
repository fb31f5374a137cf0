"""The SDK: manifests and runs as typed objects, without torch.

job = load_manifest("manifests/samples/reverse-letters.yaml")     # every problem is one line of a ManifestError
report = open_run("runs/reverse-letters")                         # what a run did, alive or over
print(report.reward_last_5, report.trained_twice_in_a_pass)
"""

from __future__ import annotations

from twinpod.api.load import ManifestError, load_manifest, load_resource
from twinpod.api.types import RLJob, RolloutPool, SandboxPool
from twinpod.client.runs import open_run

__all__ = ["ManifestError", "RLJob", "RolloutPool", "SandboxPool", "load_manifest", "load_resource", "open_run"]

"""Bad manifests, each with what a person is told: by `kubectl apply` (schema and CEL) and by `twinpod validate`.

A row changes one good manifest at the given places. `kubectl` is a part of the line that kubectl prints after
"error:" or "The RLJob ... is invalid:"; `validate` is the whole line of `twinpod validate`. Rows of `CHANGED` are good
by themselves, but not as a change of the good manifest.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
GONE = object()

JOB: Manifest = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "good"},
    "spec": {
        "iterations": 10,
        "suspend": False,
        "model": {
            "config": {
                "architecture": "qwen2",
                "hiddenSize": 64,
                "layers": 2,
                "heads": 4,
                "kvHeads": 2,
                "ffnSize": 128,
                "maxPositions": 64,
            },
            "tokenizer": {"characters": "abc="},
        },
        "dataset": {"entryPoint": {"target": "twinpod.sampling.letters:reverse", "settings": {"letters": 2}}},
        "algorithm": {"groupSize": 4, "groupsPerIteration": 4, "learningRate": "5e-4"},
        "rollout": {"maxTokens": 6},
        "reward": {"kind": "prefix"},
        "hybrid": {"sharedMemory": "64Mi"},
    },
}
POOL: Manifest = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "RolloutPool",
    "metadata": {"name": "extra"},
    "spec": {"job": "good", "replicas": 2},
}
SANDBOX: Manifest = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "SandboxPool",
    "metadata": {"name": "runner"},
    "spec": {"runtimes": [{"name": "python", "image": "python:3.12"}]},
}
GOOD: dict[str, Manifest] = {"RLJob": JOB, "RolloutPool": POOL, "SandboxPool": SANDBOX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """One bad manifest; `changes` are (dotted path, value or GONE)."""

    changes: tuple[tuple[str, Any], ...]
    kubectl: str
    validate: str = ""  # empty: good by itself
    kind: str = "RLJob"

    @property
    def name(self) -> str:
        """For the test's name."""
        path, value = self.changes[0]
        return f"{self.kind} {path}={'gone' if value is GONE else value}"[:70]

    @property
    def manifest(self) -> Manifest:
        """The good manifest, changed."""
        document = copy.deepcopy(GOOD[self.kind])
        for path, value in self.changes:
            *parents, last = path.split(".")
            node: Any = document
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
            if value is GONE:
                del node[last]
            else:
                node[last] = value
        return document


def bad(path: str, value: Any, validate: str, kubectl: str, *more: tuple[str, Any], kind: str = "RLJob") -> Bad:
    """A row that changes `path`, and `more`."""
    return Bad(changes=((path, value), *more), kubectl=kubectl, validate=validate, kind=kind)


def changed(path: str, value: Any, kubectl: str, kind: str = "RLJob") -> Bad:
    """A row that is refused as a change."""
    return Bad(changes=((path, value),), kubectl=kubectl, kind=kind)

"""Each rule says the same twice: its CEL half and its Python half agree on every manifest of the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinpod.api.problems import with_defaults
from twinpod.api.resource_rules import JOB_RULES
from twinpod.api.rules import Node, Rule
from twinpod.api.types import RLJob
from twinpod.api.yaml_text import read_document

cel = pytest.importorskip("cel", reason="common-expression-language, a development dependency")

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"
PATCHES: list[dict[str, Any]] = [
    *({"metadata": {kind: {key: "x"}}} for kind in ("labels", "annotations") for key in ("team", "twinpod.dev/job")),
    *({"spec": {"volumes": [{"name": name, "emptyDir": {}}]}} for name in ("data", "tls", "tmp-x")),
    *({"spec": {"containers": [{"name": name}]}} for name in ("trainer", "inference", "master")),
    *(
        {"spec": {"containers": [{"name": name, **more}]}}
        for name in ("trainer", "master")
        for more in (
            {"env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]},
            {"env": [{"name": "HOME", "value": "/"}]},
            {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            {"volumeMounts": [{"name": "data", "mountPath": "/dev/shm"}]},
            {"volumeMounts": [{"name": "data", "mountPath": "/"}]},
            {"resources": {"limits": {"rdma/hca": "1"}}},
            {"resources": {"limits": {"memory": "1Gi"}}},
            {"resources": {"requests": {"nvidia.com/gpu": "1"}}},
        )
    ),
]
# One change a row; a rule is looked at for each of them, whether it is about that field or not.
CHANGES: list[tuple[str, Any]] = [
    ("spec.model.from", "/m"),
    ("spec.model.config.kvHeads", 3),
    ("spec.model.config.headDim", 15),
    ("spec.model.config.hiddenSize", 130),
    ("spec.model.tokenizer", {}),
    ("spec.model.tokenizer.path", "/t"),
    ("spec.dataset.jsonLines", {"path": "x"}),
    ("spec.dataset.template", "none"),
    ("spec.reward", {"kind": "entryPoint"}),
    ("spec.reward", {"kind": "prefix", "target": "a:b"}),
    ("spec.reward", {"kind": "dataset"}),
    ("spec.algorithm.learningRate", "0.0"),
    ("spec.algorithm.betas", ["0.9", "1.0"]),
    ("spec.algorithm.baseline", "logMeanExp"),
    ("spec.algorithm.tau", "0"),
    ("spec.algorithm.maxMicroBatchTokens", 5),
    ("spec.algorithm.maxMicroBatchTokens", 5000),
    ("spec.algorithm.miniBatches", 33),
    ("spec.algorithm.learningRateSchedule.minimum", "6e-4"),
    ("spec.algorithm.learningRateSchedule.warmupIterations", 100),
    ("spec.hybrid.trainer.sequenceParallel", True),
    ("spec.rollout.segmentTokens", 7),
    ("spec.rollout.groupsInFlight", 31),
    ("spec.rollout.maxTokens", 64),
    ("spec.rollout.topP", "1.01"),
    ("spec.rollout.temperature", "0"),
    ("spec.rollout.repeat", {"ngram": 3, "count": 1, "penalty": "0"}),
    ("spec.hybrid.inference.kvTokens", 6),
    ("spec.hybrid.inference.tensorParallel", 8),
    ("spec.hybrid.inference.dataParallel", 2),
    ("spec.hybrid.inference.dataParallel", 4),
    ("spec.hybrid.inference.memoryFraction", "0"),
    ("spec.hybrid.inference.memoryFraction", "1.0"),
    ("spec.hybrid.inference.env", [{"name": "HOME", "value": "/"}, {"name": "NCCL_DEBUG", "value": "INFO"}]),
    ("spec.hybrid.trainer.env", [{"name": "TWINPOD_POD", "value": "x"}]),
    *(
        (f"spec.hybrid.{side}.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])
        for side in ("trainer", "inference")
    ),
    ("spec.hybrid.trainer.layerSpec", "TransformerEngine"),
    ("spec.hybrid.trainer.layerSpec", "Local"),
    ("spec.hybrid.kernelCache.existingClaim", "kernels"),
    ("spec.rollout.maxTokens", 65_536),
    ("spec.hybrid.trainer.tensorParallel", 3),
    ("spec.hybrid.trainer.pipelineParallel", 4),
    ("spec.hybrid.accelerators", 1),
    ("spec.hybrid.lifeCycle", "Keep"),
    ("spec.hybrid.runtimeClass", "nvidia"),
    ("spec.hybrid.lifeCycle", "Sleep"),
    ("spec.storage.snapshots.url", "s3://b/x"),
    ("spec.failurePolicy.backoffSeconds", 301),
    *((f"spec.{owner}.podPatch", patch) for owner in ("hybrid", "master") for patch in PATCHES),
    ("spec.storage.snapshots", {"existingClaim": "c"}),
]

GONE = object()
ROTARY = ("spec.model.config.architecture", "qwen2")
COMBINED: list[tuple[tuple[str, Any], ...]] = [
    (ROTARY,),
    (ROTARY, ("spec.model.config.kvHeads", 2), ("spec.hybrid.trainer.tensorParallel", 4)),
    (ROTARY, ("spec.model.config.headDim", 15)),
    (ROTARY, ("spec.model.config.headDim", 48)),
    (ROTARY, ("spec.model.config.hiddenSize", 60)),
    (("spec.model.config.kvHeads", 4), ("spec.model.config.headDim", 32)),
    (("spec.model.tokenizer", GONE),),
    (("spec.reward", {"kind": "dataset"}), ("spec.dataset.jsonLines", {"path": "x"})),
    (("spec.algorithm.eps", "0"), ("spec.algorithm.clipGrad", "0.0")),
    (("spec.algorithm.baseline", "logMeanExp"), ("spec.algorithm.tau", "0")),
    (("spec.model.config.ffnSize", 511), ("spec.hybrid.inference.tensorParallel", 2)),
    (
        ("spec.model.config.heads", 6),
        ("spec.model.config.kvHeads", 3),
        ("spec.hybrid.inference.tensorParallel", 2),
        ("spec.hybrid.accelerators", 1),
    ),
    (("spec.hybrid.trainer.dataParallel", 2), ("spec.hybrid.accelerators", 1)),
    (("spec.hybrid.inference.tensorParallel", 2), ("spec.hybrid.accelerators", 3)),
    (("spec.hybrid.inference.tensorParallel", 4), ("spec.hybrid.accelerators", 8)),
    (("spec.hybrid.inference.kvTokens", 66_000), ("spec.rollout.maxTokens", 65_536)),
    (("spec.rollout.segmentTokens", 2), ("spec.rollout.maxSegmentAge", 1)),
    (("spec.storage", {"snapshotEvery": 6, "keepIterations": 11}),),
    (("spec.storage", {"snapshotEvery": 6, "keepIterations": 12}),),
    (("spec.rollout.segmentTokens", 2), ("spec.rollout.maxSegmentAge", 2)),
    (("spec.model.config", GONE), ("spec.model.fromSnapshot", {"claim": "c", "folder": "export"})),
    (("spec.model.fromSnapshot", {"claim": "c", "folder": "iteration-1"}),),
    (("spec.model.fromSnapshot", {"claim": "c", "folder": "a/../b"}),),
    (("spec.model.from", "/m"), ("spec.model.fromSnapshot", {"claim": "c", "folder": "export"})),
]


def manifest(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The first sample, of the family opt, with the schema's defaults, changed."""
    document = with_defaults(RLJob, read_document((SAMPLES / "reverse-letters.yaml").read_text(encoding="utf-8")))
    for path, value in changes:
        *parents, last = path.split(".")
        node = document
        for part in parents:
            node = node[part]
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    return document


MANIFESTS = [
    manifest(),
    *(manifest(change) for change in CHANGES),
    *(manifest(("spec.hybrid.accelerators", 4), change) for change in CHANGES),
    *(manifest(*changes) for changes in COMBINED),
]


def node_at(document: dict[str, Any], path: str) -> dict[str, Any] | None:
    node: Any = document
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


@pytest.mark.parametrize("rule", [rule for rule in JOB_RULES if not rule.transition], ids=lambda rule: rule.where)
def test_both_halves_of_a_rule_agree_and_the_rule_can_fail(rule: Rule) -> None:
    verdicts = []
    for document in MANIFESTS:
        if (node := node_at(document, rule.path)) is not None:
            here = bool(rule.holds(Node(node)))
            if rule.cel:  # else the schema says it by other means
                assert bool(cel.evaluate(rule.cel, {"self": node})) == here, node
            verdicts.append(here)
    assert True in verdicts
    assert False in verdicts, "no manifest of the table breaks this rule; add one"

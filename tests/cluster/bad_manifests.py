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


# Told by Kubernetes 1.36 and its kubectl.
BAD: tuple[Bad, ...] = (
    bad(
        "metadata.name",
        "Good",
        "metadata.name: is \"Good\"; must be lower-case letters, digits and '-', and begin with a letter",
        ("metadata.name: Invalid value: \"Good\": metadata.name in body should match '^[a-z]([-a-z0-9]*[a-z0-9])?$'"),
    ),
    bad(
        "metadata.name",
        "a" * 45,
        "metadata.name: is too long; at most 44 characters",
        "metadata.name: Too long: may not be more than 44 bytes",
    ),
    bad(
        "spec",
        GONE,
        "spec: is missing; give an object with iterations, model, dataset, algorithm, rollout, reward",
        "spec: Required value",
    ),
    bad("spec.iterations", GONE, "spec.iterations: is missing; give a whole number", "spec.iterations: Required value"),
    bad(
        "spec.iterations",
        0,
        "spec.iterations: is 0; must be at least 1",
        "spec.iterations: Invalid value: 0: spec.iterations in body should be greater than or equal to 1",
    ),
    bad(
        "spec.iterations",
        "ten",
        'spec.iterations: is "ten"; must be a whole number',
        'spec.iterations: Invalid value: "string": spec.iterations in body must be of type integer: "string"',
    ),
    bad(
        "spec.iterations",
        1.5,
        "spec.iterations: is 1.5; must be a whole number",
        'spec.iterations: Invalid value: "number": spec.iterations in body must be of type integer: "number"',
    ),
    bad(
        "spec.iteration",
        10,
        "spec.iteration: unknown field; did you mean iterations?",
        'strict decoding error: unknown field "spec.iteration"',
    ),
    bad(
        "spec.suspend",
        "yes",
        'spec.suspend: is "yes"; must be true or false',
        'spec.suspend: Invalid value: "string": spec.suspend in body must be of type boolean: "string"',
    ),
    bad(
        "spec.algorithm.miniBatches",
        5,
        "spec.algorithm.miniBatches: 5 is above groupsPerIteration (4); each has a group at least",
        "spec.algorithm.miniBatches: Invalid value: 5 is above groupsPerIteration (4); each has a group at least",
    ),
    bad(
        "spec.algorithm.learningRateSchedule",
        {"decay": "cosine", "minimum": "1e-3"},
        'spec.algorithm.learningRateSchedule.minimum: "1e-3" is above learningRate ("5e-4"): a decay falls',
        '"1e-3" is above learningRate ("5e-4"): a decay falls',
    ),
    bad(
        "spec.algorithm.learningRateSchedule",
        {"warmupIterations": 10},
        "spec.algorithm.learningRateSchedule.warmupIterations: 10 is no fewer than iterations (10): no iteration would"
        " have the whole rate",
        "10 is no fewer than iterations (10): no iteration would have the whole rate",
    ),
    bad(
        "spec.algorithm.learningRateSchedule",
        {"decay": "exponential"},
        'spec.algorithm.learningRateSchedule.decay: is "exponential"; must be one of constant, linear, cosine',
        'spec.algorithm.learningRateSchedule.decay: Unsupported value: "exponential": supported values: "constant",',
    ),
    bad(
        "spec.hybrid.replica",
        2,
        "spec.hybrid.replica: unknown field; did you mean replicas?",
        'strict decoding error: unknown field "spec.hybrid.replica"',
    ),
    bad(
        "spec.hybrid.replicas",
        0,
        "spec.hybrid.replicas: is 0; must be at least 1",
        ("spec.hybrid.replicas: Invalid value: 0: spec.hybrid.replicas in body should be greater than or equal to 1"),
    ),
    bad(
        "spec.hybrid.sharedMemory",
        "1GB",
        'spec.hybrid.sharedMemory: "1GB" is not a quantity; write one such as 512Mi, 2Gi or 500m',
        (
            'spec.hybrid.sharedMemory: Invalid value: "1GB": spec.hybrid.sharedMemory in body should match '
            "'^([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$'"
        ),
    ),
    bad(
        "spec.hybrid.lifeCycle",
        "restart",
        'spec.hybrid.lifeCycle: is "restart"; must be one of Restart, Sleep, Keep; did you mean Restart?',
        'spec.hybrid.lifeCycle: Unsupported value: "restart": supported values: "Restart", "Sleep", "Keep"',
    ),
    bad(
        "spec.hybrid.lifeCycle",
        "Sleep",
        ("spec.hybrid.lifeCycle: Sleep gives an accelerator's memory back, and accelerators is 0; use Restart or Keep"),
        (
            "spec.hybrid.lifeCycle: Invalid value: Sleep gives an accelerator's memory back, and accelerators"
            " is 0; use Restart or Keep"
        ),
    ),
    bad(
        "spec.hybrid.lifeCycle",
        "Keep",
        (
            "spec.hybrid.lifeCycle: Keep would leave the engine on the accelerators that the trainer needs; "
            "use Restart or Sleep (Keep is for pods without accelerators)"
        ),
        (
            "spec.hybrid.lifeCycle: Invalid value: Keep would leave the engine on the accelerators that the "
            "trainer needs; use Restart or Sleep (Keep is for pods without accelerators)"
        ),
        ("spec.hybrid.accelerators", 1),
    ),
    bad(
        "spec.hybrid.accelerators",
        1,
        (
            "spec.hybrid.trainer: tensorParallel 2 x pipelineParallel 1 x dataParallel 1 is more than the "
            "accelerators of a pod (1)"
        ),
        (
            "spec.hybrid.trainer: Invalid value: tensorParallel 2 x pipelineParallel 1 x dataParallel 1 is "
            "more than the accelerators of a pod (1)"
        ),
        ("spec.hybrid.trainer", {"tensorParallel": 2}),
    ),
    bad(
        "spec.hybrid.inference",
        {"tensorParallel": 2},
        "spec.hybrid.inference.tensorParallel: 2 is more than the accelerators of a pod (1)",
        "spec.hybrid.inference.tensorParallel: Invalid value: 2 is more than the accelerators of a pod (1)",
        ("spec.hybrid.accelerators", 1),
    ),
    bad(
        "spec.hybrid.inference",
        {"tensorParallel": 2, "dataParallel": 2},
        (
            "spec.hybrid.inference.dataParallel: times inference.tensorParallel (2) must be the accelerators of a pod"
            " (8): each belongs to one engine"
        ),
        (
            "spec.hybrid.inference.dataParallel: Invalid value: times inference.tensorParallel (2) must be the "
            "accelerators of a pod (8): each belongs to one engine"
        ),
        ("spec.hybrid.accelerators", 8),
    ),
    bad(
        "spec.hybrid.inference",
        {"memoryFraction": "1"},
        'spec.hybrid.inference.memoryFraction: is "1"; must be above 0 and below 1',
        'spec.hybrid.inference.memoryFraction: Invalid value: is "1"; must be above 0 and below 1',
    ),
    bad(
        "spec.hybrid.inference",
        {"memoryFraction": 0.8},
        'spec.hybrid.inference.memoryFraction: is the bare number 0.8; write it in quotes: "0.8"',
        "spec.hybrid.inference.memoryFraction: Invalid value",
    ),
    bad(
        "spec.hybrid.trainer",
        {"env": [{"name": "HOME", "value": "/root"}]},
        (
            "spec.hybrid.trainer.env: cannot set TWINPOD_*, CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES or HOME:"
            " Twinpod does"
        ),
        "spec.hybrid.trainer.env: Invalid value: cannot set TWINPOD_*, CUDA_VISIBLE_DEVICES",
    ),
    bad(
        "spec.hybrid.inference",
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.hybrid.inference.env: names must differ",
        "spec.hybrid.inference.env[1]: Duplicate value",
    ),
    bad(
        "spec.hybrid.trainer",
        {"layerSpec": "TransformerEngine"},
        (
            "spec.hybrid.trainer.layerSpec: is TransformerEngine, which runs on GPUs only, and accelerators is 0;"
            " leave it out"
        ),
        "spec.hybrid.trainer.layerSpec: Invalid value: is TransformerEngine, which runs on GPUs only",
    ),
    bad(
        "spec.hybrid.kernelCache",
        {"existingClaim": "kernels"},
        (
            "spec.hybrid.kernelCache.existingClaim: is for compiled kernels of accelerators, and accelerators is 0;"
            " leave it out"
        ),
        "spec.hybrid.kernelCache.existingClaim: Invalid value: is for compiled kernels of accelerators",
    ),
    bad(
        "spec.hybrid.network",
        {"interface": "eth0 eth1"},
        (
            'spec.hybrid.network.interface: is "eth0 eth1"; must be an interface such as eth0, several with commas'
            " between them"
        ),
        'spec.hybrid.network.interface: Invalid value: "eth0 eth1"',
    ),
    bad(
        "spec.hybrid.runtimeClass",
        "nvidia",
        "spec.hybrid.runtimeClass: is only for sharing WholeNode; leave it out with sharing Claim",
        "spec.hybrid.runtimeClass: Invalid value: is only for sharing WholeNode; leave it out with sharing Claim",
    ),
    bad(
        "spec.hybrid.trainer.sequenceParallel",
        True,
        (
            "spec.hybrid.trainer.sequenceParallel: divides activations over the ranks of tensorParallel, which is 1; "
            "raise it, or leave this out"
        ),
        (
            "spec.hybrid.trainer.sequenceParallel: Invalid value: divides activations over the ranks of "
            "tensorParallel, which is 1; raise it, or leave this out"
        ),
    ),
    bad(
        "spec.algorithm.maxMicroBatchTokens",
        100,
        "spec.algorithm.maxMicroBatchTokens: 100 is below microBatchTokens (4096)",
        "spec.algorithm.maxMicroBatchTokens: Invalid value: 100 is below microBatchTokens (4096)",
    ),
    bad(
        "spec.hybrid.trainer.recompute",
        "full",
        'spec.hybrid.trainer.recompute: is "full"; must be one of None, Selective, Full; did you mean Full?',
        'spec.hybrid.trainer.recompute: Unsupported value: "full": supported values: "None", "Selective", "Full"',
    ),
    bad(
        "spec.hybrid.trainer",
        {"tensorParallel": 3},
        "spec.hybrid.trainer.tensorParallel: 3 does not divide model.config.heads (4)",
        "spec.hybrid.trainer.tensorParallel: Invalid value: 3 does not divide model.config.heads (4)",
    ),
    bad(
        "spec.hybrid.trainer",
        {"pipelineParallel": 3},
        "spec.hybrid.trainer.pipelineParallel: 3 does not divide model.config.layers (2)",
        "spec.hybrid.trainer.pipelineParallel: Invalid value: 3 does not divide model.config.layers (2)",
    ),
    bad(
        "spec.hybrid.inference",
        {"tensorParallel": 8},
        "spec.hybrid.inference.tensorParallel: 8 does not divide model.config.heads (4)",
        "spec.hybrid.inference.tensorParallel: Invalid value: 8 does not divide model.config.heads (4)",
    ),
    bad(
        "spec.hybrid.inference",
        {"kvTokens": 6},
        "spec.hybrid.inference.kvTokens: 6 cannot hold one trajectory of rollout.maxTokens (6) and its prompt",
        (
            "spec.hybrid.inference.kvTokens: Invalid value: 6 cannot hold one trajectory of rollout.maxTokens"
            " (6) and its prompt"
        ),
    ),
    bad(
        "spec.hybrid.podPatch",
        {"spec": {"hostNetwork": True}},
        "spec.hybrid.podPatch.spec.hostNetwork: cannot be patched: it would raise the pod's privileges",
        'strict decoding error: unknown field "spec.hybrid.podPatch.spec.hostNetwork"',
    ),
    bad(
        "spec.hybrid.podPatch",
        {"spec": {"serviceAccountName": "admin"}},
        "spec.hybrid.podPatch.spec.serviceAccountName: cannot be patched: it would raise the pod's privileges",
        'strict decoding error: unknown field "spec.hybrid.podPatch.spec.serviceAccountName"',
    ),
    bad(
        "spec.hybrid.podPatch",
        {"spec": {"securityContext": {"runAsUser": 0}}},
        "spec.hybrid.podPatch.spec.securityContext: cannot be patched: it would raise the pod's privileges",
        'strict decoding error: unknown field "spec.hybrid.podPatch.spec.securityContext"',
    ),
    bad(
        "spec.hybrid.podPatch",
        {"spec": {"containers": [{"name": "master"}]}},
        ("spec.hybrid.podPatch.spec.containers: may only name trainer, inference: the pod has no other of Twinpod's"),
        (
            "spec.hybrid.podPatch.spec.containers: Invalid value: may only name trainer, inference: the pod "
            "has no other of Twinpod's"
        ),
    ),
    bad(
        "spec.hybrid.podPatch",
        {"spec": {"containers": [{"name": "trainer", "env": [{"name": "TWINPOD_POD", "value": "x"}]}]}},
        (
            "spec.hybrid.podPatch.spec.containers: env cannot set TWINPOD_*, CUDA_VISIBLE_DEVICES, "
            "NVIDIA_VISIBLE_DEVICES or HOME: Twinpod does"
        ),
        (
            "spec.hybrid.podPatch.spec.containers: Invalid value: env cannot set TWINPOD_*, "
            "CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES or HOME: Twinpod does"
        ),
    ),
    bad(
        "spec.hybrid.podPatch",
        {"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}},
        "spec.hybrid.podPatch.spec.volumes[0].hostPath: cannot be patched: it would raise the pod's privileges",
        'strict decoding error: unknown field "spec.hybrid.podPatch.spec.volumes[0].hostPath"',
    ),
    bad(
        "spec.model.from",
        "/models/x",
        (
            "spec.model: must have exactly one of config (random weights), from (a Hugging Face folder) and "
            "fromSnapshot (another job's volume); config may stand beside fromSnapshot, as the shape of a "
            "snapshot that is no export"
        ),
        (
            "spec.model: Invalid value: must have exactly one of config (random weights), from (a Hugging "
            "Face folder) and fromSnapshot (another job's volume); config may stand beside fromSnapshot, as "
            "the shape of a snapshot that is no export"
        ),
    ),
    bad(
        "spec.model.config",
        GONE,
        (
            "spec.model: must have exactly one of config (random weights), from (a Hugging Face folder) and "
            "fromSnapshot (another job's volume); config may stand beside fromSnapshot, as the shape of a "
            "snapshot that is no export"
        ),
        (
            "spec.model: Invalid value: must have exactly one of config (random weights), from (a Hugging "
            "Face folder) and fromSnapshot (another job's volume); config may stand beside fromSnapshot, as "
            "the shape of a snapshot that is no export"
        ),
    ),
    bad(
        "spec.model.tokenizer",
        GONE,
        "spec.model: config needs a tokenizer; give tokenizer.characters or tokenizer.path",
        "spec.model: Invalid value: config needs a tokenizer; give tokenizer.characters or tokenizer.path",
    ),
    bad(
        "spec.model.tokenizer",
        {},
        "spec.model.tokenizer: must have exactly one of characters, path",
        "spec.model.tokenizer: Invalid value: must have exactly one of characters, path",
    ),
    bad(
        "spec.model.dtype",
        "fp8",
        'spec.model.dtype: is "fp8"; must be one of float32, bfloat16',
        'spec.model.dtype: Unsupported value: "fp8": supported values: "float32", "bfloat16"',
    ),
    bad(
        "spec.model.config.architecture",
        "qwen",
        'spec.model.config.architecture: is "qwen"; must be one of qwen2, qwen3, llama, opt; did you mean qwen3?',
        (
            'spec.model.config.architecture: Unsupported value: "qwen": supported values: "qwen2", "qwen3", '
            '"llama", "opt"'
        ),
    ),
    bad(
        "spec.model.config.kvHeads",
        3,
        "spec.model.config.heads: 4 is not divisible by kvHeads (3)",
        "spec.model.config.heads: Invalid value: 4 is not divisible by kvHeads (3)",
    ),
    bad(
        "spec.model.config.hiddenSize",
        66,
        "spec.model.config.hiddenSize: 66 is not divisible by heads (4); change one of them or set headDim",
        (
            "spec.model.config.hiddenSize: Invalid value: 66 is not divisible by heads (4); change one of "
            "them or set headDim"
        ),
    ),
    bad(
        "spec.model.config.headDim",
        15,
        "spec.model.config.headDim: 15 is odd; rotary positions need an even size",
        "spec.model.config.headDim: Invalid value: 15 is odd; rotary positions need an even size",
    ),
    bad(
        "spec.model.fromSnapshot",
        {"claim": "c", "folder": "/etc"},
        'spec.model.fromSnapshot.folder: is "/etc"; must be a folder of the volume, without a / at its beginning',
        (
            'spec.model.fromSnapshot.folder: Invalid value: "/etc": spec.model.fromSnapshot.folder in body '
            "should match '^[^/].*$'"
        ),
    ),
    bad(
        "spec.model.fromSnapshot",
        {"claim": "c", "folder": "a/../../x"},
        'spec.model.fromSnapshot.folder: "a/../../x" leads out of the volume; leave ".." out',
        'spec.model.fromSnapshot.folder: Invalid value: "a/../../x" leads out of the volume; leave ".." out',
        ("spec.model.config", GONE),
        ("spec.model.tokenizer", GONE),
    ),
    bad(
        "spec.dataset.jsonLines",
        {"path": "/data.jsonl"},
        "spec.dataset: must have exactly one of entryPoint, jsonLines, reasoningGym",
        "spec.dataset: Invalid value: must have exactly one of entryPoint, jsonLines, reasoningGym",
    ),
    bad(
        "spec.dataset.template",
        "Question:",
        'spec.dataset.template: "Question:" does not contain {prompt}, the place of each prompt',
        'spec.dataset.template: Invalid value: "Question:" does not contain {prompt}, the place of each prompt',
    ),
    bad(
        "spec.algorithm.learningRate",
        0.0005,
        'spec.algorithm.learningRate: is the bare number 0.0005; write it in quotes: "0.0005"',
        (
            'spec.algorithm.learningRate: Invalid value: "number": spec.algorithm.learningRate in body must '
            'be of type string: "number"'
        ),
    ),
    bad(
        "spec.algorithm.learningRate",
        "0",
        'spec.algorithm.learningRate: is "0"; must be above 0',
        'spec.algorithm.learningRate: Invalid value: is "0"; must be above 0',
    ),
    bad(
        "spec.algorithm.learningRate",
        "fast",
        'spec.algorithm.learningRate: "fast" is not a decimal of 0 or more; write one such as "5e-4"',
        (
            'spec.algorithm.learningRate: Invalid value: "fast": spec.algorithm.learningRate in body should '
            "match '^([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][-+]?[0-9]{1,3})?$'"
        ),
    ),
    bad(
        "spec.algorithm.betas",
        ["0.9", "1"],
        "spec.algorithm.betas: each must be below 1",
        "spec.algorithm.betas: Invalid value: each must be below 1",
    ),
    bad(
        "spec.algorithm.betas",
        ["0.9"],
        "spec.algorithm.betas: has 1 entries; at least 2 are needed",
        "spec.algorithm.betas: Invalid value: 1: spec.algorithm.betas in body should have at least 2 items",
    ),
    bad(
        "spec.algorithm.groupSize",
        1,
        "spec.algorithm.groupSize: is 1; must be at least 2",
        (
            "spec.algorithm.groupSize: Invalid value: 1: spec.algorithm.groupSize in body should be greater "
            "than or equal to 2"
        ),
    ),
    bad(
        "spec.algorithm.tau",
        "0",
        'spec.algorithm.tau: is "0"; baseline logMeanExp divides by it, so it must be above 0',
        'spec.algorithm.tau: Invalid value: is "0"; baseline logMeanExp divides by it, so it must be above 0',
        ("spec.algorithm.baseline", "logMeanExp"),
    ),
    bad(
        "spec.rollout.maxTokens",
        64,
        "spec.rollout.maxTokens: 64 leaves no room for a prompt in model.config.maxPositions (64)",
        "spec.rollout.maxTokens: Invalid value: 64 leaves no room for a prompt in model.config.maxPositions (64)",
    ),
    bad(
        "spec.rollout.segmentTokens",
        8,
        "spec.rollout.segmentTokens: 8 is above maxTokens (6); a segment is a part of a trajectory",
        ("spec.rollout.segmentTokens: Invalid value: 8 is above maxTokens (6); a segment is a part of a trajectory"),
    ),
    bad(
        "spec.rollout.segmentTokens",
        1,
        (
            "spec.rollout.segmentTokens: 1 is too small: a trajectory of maxTokens (6) would be dropped "
            "before its end, as maxSegmentAge (2) allows maxSegmentAge + 1 segments; raise one of them"
        ),
        (
            "spec.rollout.segmentTokens: Invalid value: 1 is too small: a trajectory of maxTokens (6) would "
            "be dropped before its end, as maxSegmentAge (2) allows maxSegmentAge + 1 segments; raise one of "
            "them"
        ),
        ("spec.rollout.maxSegmentAge", 2),
    ),
    bad(
        "spec.storage.keepIterations",
        19,
        (
            "spec.storage.keepIterations: 19 is below twice snapshotEvery (10): a resume may have to go back to the "
            "snapshot before the newest"
        ),
        (
            "spec.storage.keepIterations: Invalid value: 19 is below twice snapshotEvery (10): a resume may have to go "
            "back to the snapshot before the newest"
        ),
    ),
    bad(
        "spec.rollout.groupsInFlight",
        2,
        (
            "spec.rollout.groupsInFlight: 2 is below algorithm.groupsPerIteration (4); an iteration could "
            "never finish that many groups"
        ),
        (
            "spec.rollout.groupsInFlight: Invalid value: 2 is below algorithm.groupsPerIteration (4); an "
            "iteration could never finish that many groups"
        ),
    ),
    bad(
        "spec.rollout.topP",
        "1.5",
        'spec.rollout.topP: is "1.5"; must be above 0 and at most 1',
        'spec.rollout.topP: Invalid value: is "1.5"; must be above 0 and at most 1',
    ),
    bad(
        "spec.rollout.temperature",
        "0",
        'spec.rollout.temperature: is "0"; must be above 0',
        'spec.rollout.temperature: Invalid value: is "0"; must be above 0',
    ),
    bad(
        "spec.rollout.repeat",
        {"ngram": 3},
        "spec.rollout.repeat.count: is 0 with ngram 3; give both 0 (off), or ngram 1 or more and count 2 or more",
        (
            "spec.rollout.repeat.count: Invalid value: is 0 with ngram 3; give both 0 (off), or ngram 1 or "
            "more and count 2 or more"
        ),
    ),
    bad(
        "spec.reward.kind",
        "entryPoint",
        ('spec.reward.target: is for kind entryPoint, which needs it as "package.module:function"; kind is entryPoint'),
        (
            "spec.reward.target: Invalid value: is for kind entryPoint, which needs it as "
            '"package.module:function"; kind is entryPoint'
        ),
    ),
    bad(
        "spec.reward.target",
        "a.b:c",
        'spec.reward.target: is for kind entryPoint, which needs it as "package.module:function"; kind is prefix',
        (
            "spec.reward.target: Invalid value: is for kind entryPoint, which needs it as "
            '"package.module:function"; kind is prefix'
        ),
    ),
    bad(
        "spec.reward",
        {"kind": "entryPoint", "target": "nothing"},
        'spec.reward.target: is "nothing"; must look like "package.module:function"',
        (
            'spec.reward.target: Invalid value: "nothing": spec.reward.target in body should match '
            "'^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$'"
        ),
    ),
    bad(
        "spec.reward.timeoutSeconds",
        0,
        "spec.reward.timeoutSeconds: is 0; must be at least 1",
        "spec.reward.timeoutSeconds: Invalid value: 0: spec.reward.timeoutSeconds in body should be greater than or",
    ),
    bad(
        "spec.reward.processes",
        257,
        "spec.reward.processes: is 257; must be at most 256",
        "spec.reward.processes: Invalid value: 257: spec.reward.processes in body should be less than or equal to 256",
    ),
    bad(
        "spec.storage",
        {"snapshots": {"url": "s3://bucket/x"}},
        (
            'spec.storage.snapshots.url: "s3://bucket/x" cannot be used: a URL is not supported yet. Snapshots and '
            "exports go to a ReadWriteMany claim: leave url out, and give size (a new claim) or existingClaim"
        ),
        (
            'spec.storage.snapshots.url: Invalid value: "s3://bucket/x" cannot be used: a URL is not supported yet. '
            "Snapshots and exports go to a ReadWriteMany claim: leave url out, and give size (a new claim) or "
            "existingClaim"
        ),
    ),
    bad(
        "spec.storage",
        {"whenDeleted": "Keep"},
        'spec.storage.whenDeleted: is "Keep"; must be one of Retain, Delete',
        'spec.storage.whenDeleted: Unsupported value: "Keep": supported values: "Retain", "Delete"',
    ),
    bad(
        "spec.failurePolicy",
        {"maxRestarts": -1},
        "spec.failurePolicy.maxRestarts: is -1; must be at least 0",
        (
            "spec.failurePolicy.maxRestarts: Invalid value: -1: spec.failurePolicy.maxRestarts in body should"
            " be greater than or equal to 0"
        ),
    ),
    bad(
        "spec.failurePolicy",
        {"backoffSeconds": 600},
        "spec.failurePolicy.backoffSeconds: 600 is above maxBackoffSeconds (300)",
        "spec.failurePolicy.backoffSeconds: Invalid value: 600 is above maxBackoffSeconds (300)",
    ),
    bad(
        "spec.managedBy",
        "kueue",
        'spec.managedBy: is "kueue"; must be a path below a domain, such as example.com/controller',
        (
            'spec.managedBy: Invalid value: "kueue": spec.managedBy in body should match '
            "'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*)$'"
        ),
    ),
    bad(
        "spec.activeDeadlineSeconds",
        0,
        "spec.activeDeadlineSeconds: is 0; must be at least 1",
        (
            "spec.activeDeadlineSeconds: Invalid value: 0: spec.activeDeadlineSeconds in body should be "
            "greater than or equal to 1"
        ),
    ),
    bad(
        "spec.ttlSecondsAfterFinished",
        -5,
        "spec.ttlSecondsAfterFinished: is -5; must be at least 0",
        (
            "spec.ttlSecondsAfterFinished: Invalid value: -5: spec.ttlSecondsAfterFinished in body should be "
            "greater than or equal to 0"
        ),
    ),
    bad(
        "spec.priorityClassName",
        "High!",
        'spec.priorityClassName: is "High!"; must match ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$',
        (
            'spec.priorityClassName: Invalid value: "High!": spec.priorityClassName in body should match '
            "'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'"
        ),
    ),
    bad(
        "spec.replicas",
        -1,
        "spec.replicas: is -1; must be at least 0",
        "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
        kind="RolloutPool",
    ),
    bad("spec.job", GONE, "spec.job: is missing; give text", "spec.job: Required value", kind="RolloutPool"),
    bad(
        "spec.inference",
        {"tensorParallel": 2},
        "spec.inference.tensorParallel: 2 is more than the accelerators of a pod (1)",
        "spec.inference.tensorParallel: Invalid value: 2 is more than the accelerators of a pod (1)",
        ("spec.accelerators", 1),
        kind="RolloutPool",
    ),
    bad(
        "spec.inference",
        {"tensorParallel": 2, "dataParallel": 4},
        (
            "spec.inference.dataParallel: times inference.tensorParallel (2) must be the accelerators of a pod (4):"
            " each belongs to one engine"
        ),
        "spec.inference.dataParallel: Invalid value: times inference.tensorParallel (2) must be the accelerators",
        ("spec.accelerators", 4),
        kind="RolloutPool",
    ),
    bad(
        "spec.podPatch",
        {"spec": {"containers": [{"name": "trainer"}]}},
        "spec.podPatch.spec.containers: may only name inference: the pod has no other of Twinpod's",
        ("spec.podPatch.spec.containers: Invalid value: may only name inference: the pod has no other of Twinpod's"),
        kind="RolloutPool",
    ),
    bad(
        "spec.runtimes",
        [],
        "spec.runtimes: has 0 entries; at least 1 are needed",
        "spec.runtimes: Invalid value: 0: spec.runtimes in body should have at least 1 items",
        kind="SandboxPool",
    ),
    bad(
        "spec.runtimes",
        [{"name": "a", "image": "x"}, {"name": "a", "image": "y"}],
        "spec.runtimes: names must differ",
        'spec.runtimes[1]: Duplicate value: {"name":"a"}',
        kind="SandboxPool",
    ),
)

CHANGED: tuple[Bad, ...] = (
    changed("spec.seed", 1, "spec.seed: Invalid value: cannot be changed: the run was begun with it; make a new RLJob"),
    changed(
        "spec.model.dtype",
        "bfloat16",
        ("spec.model: Invalid value: cannot be changed: the weights of the run were made from it; make a new RLJob"),
    ),
    changed(
        "spec.dataset.heldOut",
        7,
        (
            "spec.dataset: Invalid value: cannot be changed: the prompts in the run's books come from it; "
            "make a new RLJob"
        ),
    ),
    changed(
        "spec.dataset.entryPoint.settings",
        {"letters": 3},
        (
            "spec.dataset: Invalid value: cannot be changed: the prompts in the run's books come from it; "
            "make a new RLJob"
        ),
    ),
    changed(
        "spec.iterations",
        20,
        (
            "spec.iterations: Invalid value: cannot be changed while the job runs: its pods read it when they"
            " start; set suspend to true first"
        ),
    ),
    changed(
        "spec.algorithm.learningRate",
        "1e-3",
        (
            "spec.algorithm: Invalid value: cannot be changed while the job runs: its pods read it when they "
            "start; set suspend to true first"
        ),
    ),
    changed(
        "spec.hybrid.replicas",
        2,
        (
            "spec.hybrid: Invalid value: cannot be changed while the job runs: its pods read it when they "
            "start; set suspend to true first"
        ),
    ),
    changed(
        "spec.hybrid.podPatch",
        {"spec": {"affinity": {"nodeAffinity": {}}}},
        (
            "spec.hybrid: Invalid value: cannot be changed while the job runs: its pods read it when they "
            "start; set suspend to true first"
        ),
    ),
    changed(
        "spec.master",
        {"resources": {"limits": {"cpu": "2"}}},
        (
            "spec.master: Invalid value: cannot be changed while the job runs: its pods read it when they "
            "start; set suspend to true first"
        ),
    ),
    changed(
        "spec.storage",
        {"snapshotEvery": 3},
        (
            "spec.storage.snapshotEvery: Invalid value: cannot be changed while the job runs: its pods read "
            "it when they start; set suspend to true first"
        ),
    ),
    changed(
        "spec.storage",
        {"keepIterations": 60},
        (
            "spec.storage.keepIterations: Invalid value: cannot be changed while the job runs: its pods read "
            "it when they start; set suspend to true first"
        ),
    ),
    changed(
        "spec.storage",
        {"state": {"size": "2Gi"}},
        "spec.storage.state: Invalid value: cannot be changed: the run's books are there; make a new RLJob",
    ),
    changed(
        "spec.storage",
        {"snapshots": {"size": "2Gi"}},
        ("spec.storage.snapshots: Invalid value: cannot be changed: the run's snapshots are there; make a new RLJob"),
    ),
    changed(
        "spec.priorityClassName",
        "high",
        (
            "spec.priorityClassName: Invalid value: cannot be changed while the job runs: its pods read it "
            "when they start; set suspend to true first"
        ),
    ),
    changed(
        "spec.managedBy",
        "example.com/x",
        (
            "spec.managedBy: Invalid value: cannot be changed: another controller would have to take over the"
            " pods; make a new RLJob"
        ),
    ),
    changed(
        "spec.rollout.temperature",
        "0.5",
        (
            "spec.rollout: Invalid value: cannot be changed while the job runs: its pods read it when they "
            "start; set suspend to true first"
        ),
    ),
    changed(
        "spec.reward.kind",
        "exact",
        (
            "spec.reward: Invalid value: cannot be changed while the job runs: its pods read it when they "
            "start; set suspend to true first"
        ),
    ),
    changed(
        "spec.job",
        "other",
        "spec.job: Invalid value: cannot be changed: its pods joined that job; make a new RolloutPool",
        kind="RolloutPool",
    ),
    changed(
        "spec.accelerators",
        1,
        (
            "spec.accelerators: Invalid value: cannot be changed while the pool has pods: they are made from "
            "it; scale the pool to 0 first"
        ),
        kind="RolloutPool",
    ),
    changed(
        "spec.inference",
        {"kvTokens": 1000},
        (
            "spec.inference: Invalid value: cannot be changed while the pool has pods: they are made from it;"
            " scale the pool to 0 first"
        ),
        kind="RolloutPool",
    ),
    changed(
        "spec.podPatch",
        {"spec": {"nodeSelector": {"a": "b"}}},
        (
            "spec.podPatch: Invalid value: cannot be changed while the pool has pods: they are made from it; "
            "scale the pool to 0 first"
        ),
        kind="RolloutPool",
    ),
)

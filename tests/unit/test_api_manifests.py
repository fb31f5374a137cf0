"""What a person sees for a manifest that is wrong: one line a problem, with field, value and what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from twinpod.api.load import ManifestError, load_as, load_manifest, load_resource
from twinpod.api.types import RLJob, RolloutPool, SandboxPool
from twinpod.api.yaml_text import read_document, write_document
from twinpod.errors import InputError

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"
GONE = object()

# (path, value or GONE, the one line)
BAD_JOBS: list[tuple[str, Any, str]] = [
    ("spec.rollout.segmentTokns", 2, "spec.rollout.segmentTokns: unknown field; did you mean segmentTokens?"),
    ("spec.groupSize", 8, "spec.groupSize: unknown field; did you mean spec.algorithm.groupSize?"),
    ("spec.rollout.max_tokens", 8, "spec.rollout.max_tokens: unknown field; did you mean maxTokens?"),
    ("spec.reward.zzz", 1, "spec.reward.zzz: unknown field; known here: kind, target, timeoutSeconds, processes"),
    ("metadata.lables", {}, "metadata.lables: unknown field; did you mean labels?"),
    ("spec.iterations", GONE, "spec.iterations: is missing; give a whole number"),
    ("spec.reward.kind", GONE, "spec.reward.kind: is missing; give one of prefix, exact, dataset, entryPoint"),
    (
        "spec.algorithm.learningRate",
        GONE,
        'spec.algorithm.learningRate: is missing; give a decimal number in quotes, such as "5e-4"',
    ),
    ("spec.rollout", GONE, "spec.rollout: is missing; give an object with maxTokens"),
    ("metadata.name", GONE, "metadata.name: is missing; give text"),
    ("spec.iterations", 0, "spec.iterations: is 0; must be at least 1"),
    ("spec.iterations", "ten", 'spec.iterations: is "ten"; must be a whole number'),
    ("spec.iterations", "10", 'spec.iterations: is "10"; must be a whole number, without quotes'),
    ("spec.iterations", 1.5, "spec.iterations: is 1.5; must be a whole number"),
    ("spec.iterations", True, "spec.iterations: is true; must be a whole number"),
    ("spec.iterations", 3_000_000_000, "spec.iterations: is 3000000000; must be at most 2147483647"),
    ("spec.suspend", "true", 'spec.suspend: is "true"; must be true or false, without quotes'),
    ("spec.hybrid", [], "spec.hybrid: is a list; must be an object with fields"),
    ("spec.hybrid.replicas", 0, "spec.hybrid.replicas: is 0; must be at least 1"),
    ("spec.hybrid.trainer.tensorParallel", 0, "spec.hybrid.trainer.tensorParallel: is 0; must be at least 1"),
    ("spec.algorithm.groupSize", 1, "spec.algorithm.groupSize: is 1; must be at least 2"),
    (
        "spec.algorithm.learningRate",
        0.0005,
        'spec.algorithm.learningRate: is the bare number 0.0005; write it in quotes: "0.0005"',
    ),
    (
        "spec.algorithm.tau",
        "big",
        'spec.algorithm.tau: "big" is not a decimal of 0 or more; write one such as "5e-4"',
    ),
    ("spec.algorithm.tau", "-1", 'spec.algorithm.tau: "-1" is not a decimal of 0 or more; write one such as "5e-4"'),
    ("spec.algorithm.betas", ["0.9"], "spec.algorithm.betas: has 1 entries; at least 2 are needed"),
    ("spec.algorithm.betas", ["0.9", "1"], "spec.algorithm.betas: each must be below 1"),
    ("spec.algorithm.learningRate", "0", 'spec.algorithm.learningRate: is "0"; must be above 0'),
    ("spec.algorithm.clipGrad", "0.0", 'spec.algorithm.clipGrad: is "0.0"; must be above 0'),
    (
        "spec.hybrid.sharedMemory",
        "1GB",
        'spec.hybrid.sharedMemory: "1GB" is not a quantity; write one such as 512Mi, 2Gi or 500m',
    ),
    (
        "spec.hybrid.lifeCycle",
        "restart",
        'spec.hybrid.lifeCycle: is "restart"; must be one of Restart, Sleep, Keep; did you mean Restart?',
    ),
    (
        "spec.model.config.architecture",
        "qwen",
        'spec.model.config.architecture: is "qwen"; must be one of qwen2, qwen3, llama, opt; did you mean qwen3?',
    ),
    ("spec.model.dtype", "fp8", 'spec.model.dtype: is "fp8"; must be one of float32, bfloat16'),
    (
        "metadata.name",
        "My_Job",
        "metadata.name: is \"My_Job\"; must be lower-case letters, digits and '-', and begin with a letter",
    ),
    ("metadata.name", "x" * 45, "metadata.name: is too long; at most 44 characters"),
    (
        "spec.dataset.entryPoint.target",
        "letters.reverse",
        'spec.dataset.entryPoint.target: is "letters.reverse"; must look like "package.module:function"',
    ),
    (
        "spec.model.tokenizer.characters",
        "abca",
        "spec.model.tokenizer.characters: holds 'a' twice; each character is one token",
    ),
    ("spec.model.tokenizer.characters", "", "spec.model.tokenizer.characters: is empty; write something"),
    (
        "spec.hybrid.trainer.tensorParallel",
        3,
        "spec.hybrid.trainer.tensorParallel: 3 does not divide model.config.heads (4)",
    ),
    (
        "spec.hybrid.trainer.pipelineParallel",
        3,
        "spec.hybrid.trainer.pipelineParallel: 3 does not divide model.config.layers (2)",
    ),
    (
        "spec.hybrid.inference.tensorParallel",
        8,
        "spec.hybrid.inference.tensorParallel: 8 does not divide model.config.heads (4)",
    ),
    ("spec.model.config.heads", 6, "spec.model.config.heads: 6 is not divisible by kvHeads (4)"),
    (
        "spec.model.config.hiddenSize",
        130,
        "spec.model.config.hiddenSize: 130 is not divisible by heads (4); change one of them or set headDim",
    ),
    ("spec.model.config.headDim", 15, "spec.model.config.headDim: 15 is odd; rotary positions need an even size"),
    (
        "spec.rollout.segmentTokens",
        8,
        "spec.rollout.segmentTokens: 8 is above maxTokens (6); a segment is a part of a trajectory",
    ),
    (
        "spec.rollout.groupsInFlight",
        8,
        (
            "spec.rollout.groupsInFlight: 8 is below algorithm.groupsPerIteration (32); an iteration could never"
            " finish that many groups"
        ),
    ),
    (
        "spec.rollout.maxTokens",
        64,
        "spec.rollout.maxTokens: 64 leaves no room for a prompt in model.config.maxPositions (64)",
    ),
    (
        "spec.hybrid.inference.kvTokens",
        6,
        "spec.hybrid.inference.kvTokens: 6 cannot hold one trajectory of rollout.maxTokens (6) and its prompt",
    ),
    ("spec.rollout.temperature", "0", 'spec.rollout.temperature: is "0"; must be above 0'),
    ("spec.rollout.topP", "1.5", 'spec.rollout.topP: is "1.5"; must be above 0 and at most 1'),
    (
        "spec.rollout.repeat",
        {"ngram": 4},
        "spec.rollout.repeat.count: is 0 with ngram 4; give both 0 (off), or ngram 1 or more and count 2 or more",
    ),
    (
        "spec.dataset.jsonLines",
        {"path": "x"},
        "spec.dataset: must have exactly one of entryPoint, jsonLines, reasoningGym",
    ),
    ("spec.dataset.entryPoint", GONE, "spec.dataset: must have exactly one of entryPoint, jsonLines, reasoningGym"),
    (
        "spec.dataset.template",
        "question:",
        'spec.dataset.template: "question:" does not contain {prompt}, the place of each prompt',
    ),
    (
        "spec.model.from",
        "/models/x",
        (
            "spec.model: must have exactly one of config (random weights), from (a Hugging Face folder) and"
            " fromSnapshot (another job's volume); config may stand beside fromSnapshot, as the shape of a snapshot"
            " that is no export"
        ),
    ),
    (
        "spec.model.tokenizer",
        GONE,
        "spec.model: config needs a tokenizer; give tokenizer.characters or tokenizer.path",
    ),
    ("spec.model.tokenizer", {}, "spec.model.tokenizer: must have exactly one of characters, path"),
    (
        "spec.reward.kind",
        "entryPoint",
        'spec.reward.target: is for kind entryPoint, which needs it as "package.module:function"; kind is entryPoint',
    ),
    (
        "spec.hybrid",
        {"accelerators": 8, "lifeCycle": "Keep"},
        (
            "spec.hybrid.lifeCycle: Keep would leave the engine on the accelerators that the trainer needs;"
            " use Restart or Sleep (Keep is for pods without accelerators)"
        ),
    ),
    (
        "spec.hybrid",
        {"accelerators": 1, "trainer": {"tensorParallel": 2, "pipelineParallel": 2}},
        (
            "spec.hybrid.trainer: tensorParallel 2 x pipelineParallel 2 x dataParallel 1 is more than the"
            " accelerators of a pod (1)"
        ),
    ),
    (
        "spec.hybrid.runtimeClass",
        "nvidia",
        "spec.hybrid.runtimeClass: is only for sharing WholeNode; leave it out with sharing Claim",
    ),
    (
        "spec.storage",
        {"snapshots": {"url": "s3://b/f", "existingClaim": "c"}},
        (
            'spec.storage.snapshots.url: "s3://b/f" cannot be used: a URL is not supported yet. Snapshots and exports'
            " go to a ReadWriteMany claim: leave url out, and give size (a new claim) or existingClaim"
        ),
    ),
]
BAD_TEXTS: list[tuple[str, str]] = [
    ("- a\n- b\n", "is a list; a manifest is one object that begins with apiVersion and kind"),
    ("\n", "is empty; write a resource that begins with apiVersion and kind"),
    ("just words\n", 'is only "just words"; a manifest is an object that begins with apiVersion and kind'),
    ("apiVersion: v1\nkind: RLJob\n", 'apiVersion: is "v1"; must be twinpod.dev/v1alpha1'),
    ("kind: RLJob\nspec: {}\n", "apiVersion: is missing; write twinpod.dev/v1alpha1"),
    ("apiVersion: twinpod.dev/v1alpha1\nkind: rljob\n", 'kind: is "rljob"; must be RLJob; did you mean RLJob?'),
    ("apiVersion: twinpod.dev/v1alpha1\nkind: Pod\n", 'kind: is "Pod"; must be RLJob'),
    ("apiVersion: twinpod.dev/v1alpha1\nkind: RolloutPool\n", "kind: is RolloutPool; an RLJob is needed here"),
    ("apiVersion: twinpod.dev/v1alpha1\nspec: {}\n", "kind: is missing; write RLJob"),
    (
        "a: 1\n---\nb: 2\n",
        "line 3: a second document begins; one file holds one resource, put the others into files of their own",
    ),
    ("a: 1\nb: 2\na: 3\n", "line 3: a stands twice in one object; remove one"),
    ("a: 1\n1: 2\n", "line 2: the field name 1 is not text; write it in quotes"),
    (
        "a:\n\tb: 1\n",
        "line 2, column 1: not YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs",
    ),
    (
        "a: b: c\n",
        (
            "line 1, column 5: not YAML: mapping values are not allowed here; check the indentation and put text"
            " that contains ': ' into quotes"
        ),
    ),
    ("a: {b: 1\n", "line 2, column 1: not YAML: expected ',' or '}', but got '<stream end>'"),
    ("a: *b\n", "line 1, column 4: not YAML: found undefined alias 'b'"),
]


BREAKS_TWO = {
    "spec.model.config.heads: 6 is not divisible by kvHeads (4)": (
        "spec.model.config.heads: 6 is not divisible by kvHeads (4)",
        "spec.model.config.hiddenSize: 128 is not divisible by heads (6); change one of them or set headDim",
    ),
}


def sample() -> dict[str, Any]:
    """The first sample with a model of rotary positions, whose fields have more freedom than opt's."""
    document: dict[str, Any] = read_document((SAMPLES / "reverse-letters.yaml").read_text(encoding="utf-8"))
    document["spec"]["model"]["config"] |= {"architecture": "qwen2", "kvHeads": 4}
    return document


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one field set, or taken away."""
    result = copy.deepcopy(document)
    *parents, last = path.split(".")
    node = result
    for part in parents:
        node = node.setdefault(part, {})
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return result


def problems(source: str) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        load_manifest(source)
    return caught.value.problems


@pytest.mark.parametrize(("path", "value", "line"), BAD_JOBS, ids=lambda case: str(case)[:50])
def test_a_bad_manifest_gets_this_line(path: str, value: Any, line: str) -> None:
    assert line in problems(write_document(changed(sample(), path, value)))


@pytest.mark.parametrize(("text", "line"), BAD_TEXTS, ids=lambda case: repr(case)[:40])
def test_text_that_is_no_manifest_gets_this_line(text: str, line: str) -> None:
    assert problems(text) == (line,)


def test_one_mistake_gives_one_line() -> None:
    told = {line: problems(write_document(changed(sample(), path, value))) for path, value, line in BAD_JOBS}
    assert {line: lines for line, lines in told.items() if len(lines) > 1} == BREAKS_TWO


def test_python_objects_in_yaml_are_refused() -> None:
    assert "could not determine a constructor" in problems("a: !!python/object:os.system x\n")[0]


def test_all_problems_of_a_file_come_at_once() -> None:
    document = sample()
    for path, value in (
        ("spec.rollout.segmentTokens", 9),
        ("spec.reward.kid", "prefix"),
        ("spec.iterations", 0),
        ("spec.hybrid.trainer", {"tensorParallel": 3}),
    ):
        document = changed(document, path, value)
    lines = problems(write_document(document))
    assert [line.split(":")[0] for line in lines] == [
        "spec.iterations",
        "spec.reward.kid",
        "spec.rollout.segmentTokens",
        "spec.hybrid.trainer.tensorParallel",
    ]


def test_an_unquoted_exponent_is_told_as_the_number_that_kubectl_would_send() -> None:
    text = (SAMPLES / "reverse-letters.yaml").read_text(encoding="utf-8").replace('"5e-4"', "5e-4")
    assert problems(text) == ('spec.algorithm.learningRate: is the bare number 0.0005; write it in quotes: "0.0005"',)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none.yaml", "does not exist; check the path"),
        ("folder", "is a folder; name one manifest file in it"),
        ("bytes.yaml", "is not UTF-8 text; a manifest is YAML or JSON text"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError) as caught:
        load_manifest(tmp_path / name)
    assert line in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_with_problems_is_named_once_and_each_problem_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    document = changed(changed(sample(), "spec.iterations", 0), "spec.seed", -1)
    path.write_text(write_document(document), encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 problems",
        "spec.iterations: is 0; must be at least 1",
        "spec.seed: is -1; must be at least 0",
    ]


def test_defaults_and_derived_fields_are_filled_in_and_survive_json() -> None:
    job = load_manifest(SAMPLES / "reverse-letters.yaml")
    spec = job.spec
    assert (spec.rollout.segment_tokens, spec.rollout.groups_in_flight) == (6, 32)
    assert spec.model.config is not None
    assert (spec.model.config.head_dim, spec.model.config.kv_heads) == (32, 4)
    assert float(spec.algorithm.weights_gap_limit) == 1e-3
    assert spec.hybrid.inference.max_running == 512
    assert load_manifest(write_document(job.as_manifest())) == job


def test_the_weights_gap_limit_follows_the_hardware() -> None:
    job = load_manifest(write_document(changed(sample(), "spec.model.dtype", "bfloat16")))
    assert job.spec.algorithm.weights_gap_limit == "1e-1"


def test_one_key_value_head_is_fine_without_tensor_parallelism() -> None:
    assert load_manifest(write_document(changed(sample(), "spec.model.config.kvHeads", 1)))


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        ("kvHeads", 2, ("kvHeads: is 2; opt has one for each of its heads (4): leave kvHeads out",)),
        ("headDim", 16, ("headDim: is 16; opt's heads share hiddenSize (128) equally: leave headDim out",)),
        ("heads", 6, ("hiddenSize: 128 is not divisible by heads (6); change one of them or set headDim",)),
    ],
)
def test_opt_has_no_choice_of_its_heads(path: str, value: int, lines: tuple[str, ...]) -> None:
    document = read_document((SAMPLES / "reverse-letters.yaml").read_text(encoding="utf-8"))
    changes = problems(write_document(changed(document, f"spec.model.config.{path}", value)))
    assert changes == tuple(f"spec.model.config.{line}" for line in lines)


def test_learned_positions_do_not_need_an_even_head() -> None:
    document = read_document((SAMPLES / "reverse-letters.yaml").read_text(encoding="utf-8"))
    assert load_manifest(write_document(changed(document, "spec.model.config.hiddenSize", 60)))


def test_what_a_cluster_gives_back_can_be_read_again() -> None:
    document = sample()
    document["metadata"] |= {
        "uid": "u",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "generation": 2,
    }
    document["status"] = {"iteration": 3, "reward": "0.5"}
    assert load_manifest(write_document(document)).metadata.uid == "u"


POOL = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "RolloutPool",
    "metadata": {"name": "more"},
    "spec": {"job": "reverse-letters", "replicas": 2},
}
SANDBOX = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "SandboxPool",
    "metadata": {"name": "code"},
    "spec": {"runtimes": [{"name": "python", "image": "python:3.11"}]},
}


def test_pools_are_read_by_their_kind() -> None:
    assert isinstance(load_resource(write_document(POOL)), RolloutPool)
    assert load_as(SandboxPool, write_document(SANDBOX)).spec.limits.seconds == 10
    with pytest.raises(ManifestError, match="an RLJob is needed here"):
        load_as(RLJob, write_document(POOL))


@pytest.mark.parametrize(
    ("document", "path", "value", "line"),
    [
        (POOL, "spec.replicas", -1, "spec.replicas: is -1; must be at least 0"),
        (POOL, "spec.replica", 1, "spec.replica: unknown field; did you mean replicas?"),
        (SANDBOX, "spec.runtimes", [], "spec.runtimes: has 0 entries; at least 1 are needed"),
        (SANDBOX, "spec.runtimes", [{"name": "a"}], "spec.runtimes[0].image: is missing; give text"),
        (SANDBOX, "spec.runtimes", [{"name": "a", "image": "i"}] * 2, "spec.runtimes: names must differ"),
    ],
)
def test_a_bad_pool_gets_this_line(document: dict[str, Any], path: str, value: Any, line: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_resource(write_document(changed(document, path, value)))
    assert line in caught.value.problems

"""What a model folder and the data cannot take is refused before anything starts: field or file, number, what fits.

Every row goes through the command line, as `validate` and as the local start, and through the master's own first
second: exit code 2, one line, nothing written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.unit.test_tokens import folder as tokenizer_folder

from twinpod.api.safetensors_header import INDEX, WEIGHTS, read_header, stored_tensors
from twinpod.cli.__main__ import main
from twinpod.errors import EXIT_INPUT, InputError
from twinpod.master import __main__ as master
from twinpod.master.limits import RESERVED
from twinpod.records.model_shape import shape_from_huggingface
from twinpod.trainer.convert.plan import full_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "vocab_size": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
JOB: dict[str, Any] = {
    "apiVersion": "twinpod.dev/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "limits"},
    "spec": {
        "iterations": 1,
        "algorithm": {"groupSize": 2, "groupsPerIteration": 2, "learningRate": "1e-4"},
        "rollout": {"maxTokens": 8},
        "reward": {"kind": "exact"},
    },
}
SECOND = "model-00002-of-00002.safetensors"


class Scene:
    """A model folder in two files with its index, data, and a job of them; all right until it is spoilt."""

    def __init__(self, base: Path) -> None:
        self.base, self.model = base, base / "model"
        self.model.mkdir()
        tokenizer_folder(self.model)
        self.config(CONFIG)
        tensors = [(name, np.zeros(shape, np.float32)) for name, shape in full_tensors(shape()).items()]
        half = len(tensors) // 2
        files = {"model-00001-of-00002.safetensors": dict(tensors[:half]), SECOND: dict(tensors[half:])}
        for file, content in files.items():
            save_file(content, self.model / file, metadata={"format": "pt"})
        self.weight_map = {name: file for file, content in files.items() for name in content}
        self.index(self.weight_map)
        self.data = base / "data.jsonl"
        self.data.write_text('{"prompt": "ab", "answer": "ba"}\n\n{"prompt": "abcabcabc", "answer": "cba"}\n')
        self.job = json.loads(json.dumps(JOB))
        self.job["spec"] |= {
            "model": {"from": str(self.model)},
            "dataset": {"jsonLines": {"path": str(self.data)}, "heldOut": 0},
            "hybrid": {"inference": {"kvTokens": 4096}},
        }

    def config(self, content: dict[str, Any]) -> None:
        (self.model / "config.json").write_text(json.dumps(content))

    def index(self, weight_map: dict[str, str]) -> None:
        (self.model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    def single(self, tensors: dict[str, Any]) -> None:
        """One file instead of the two."""
        (self.model / INDEX).unlink()
        save_file(tensors, self.model / WEIGHTS)

    def zeros(self, dtype: Any = np.float32, **other: tuple[int, ...]) -> dict[str, Any]:
        return {name: np.zeros(other.get(name, full), dtype) for name, full in full_tensors(shape()).items()}

    @property
    def file(self) -> Path:
        path = self.base / "job.json"
        path.write_text(json.dumps(self.job))
        return path


def shape() -> Any:
    return shape_from_huggingface(CONFIG)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_whole_folder_and_data_that_fits_are_valid(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(scene.file)]) == 0
    assert capsys.readouterr().out == f"{scene.file}: RLJob limits is valid\n"


def test_what_this_machine_does_not_have_is_told_and_not_looked_at(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.job["spec"]["model"] = {"from": "/models/of-the-cluster"}
    scene.job["spec"]["reward"] = {"kind": "entryPoint", "target": "module_of_the_image.rewards:score"}
    assert main(["validate", str(scene.file)]) == 0
    _, told = capsys.readouterr().out.splitlines()
    assert told.endswith(
        "not looked at, because this machine does not have the model folder /models/of-the-cluster,"
        " the module module_of_the_image.rewards; the master does"
    )


def test_a_model_is_looked_at_where_the_data_is_not_here(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.data.unlink()
    scene.config({**CONFIG, "architectures": ["GPT2LMHeadModel"]})
    assert main(["validate", str(scene.file)]) == EXIT_INPUT
    assert "the trainer knows" in capsys.readouterr().err


def config(**change: Any) -> Callable[[Scene], None]:
    return lambda scene: scene.config({**CONFIG, **change})


def spec(part: str, **change: Any) -> Callable[[Scene], None]:
    return lambda scene: scene.job["spec"].__setitem__(part, {**scene.job["spec"].get(part, {}), **change})


def cut(scene: Scene) -> None:
    os.truncate(scene.model / SECOND, (scene.model / SECOND).stat().st_size - 100)


def pointer(scene: Scene) -> None:
    (scene.model / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4932\n")


def empty(scene: Scene) -> None:
    (scene.model / SECOND).write_bytes(b"")


def no_shard(scene: Scene) -> None:
    (scene.model / SECOND).unlink()


def no_weights(scene: Scene) -> None:
    (scene.model / INDEX).unlink()


def long_prompt(scene: Scene) -> None:
    scene.data.write_text('{"prompt": "ab", "answer": "ba"}\n{"prompt": "' + "abc" * 20 + '", "answer": "a"}\n')


def by_name(name: str, dtype: Any = np.float32, **other: tuple[int, ...]) -> Callable[[Scene], None]:
    """One file without `name`, with tensors of other shapes, or of another type."""

    def spoil(scene: Scene) -> None:
        tensors = scene.zeros(dtype, **other)
        tensors.pop(name, None)
        scene.single(tensors)

    return spoil


MOST, CACHE = "spec.rollout.maxTokens", "spec.hybrid.inference.kvTokens"
CONTEXT = "the model's context"
LONGEST = "with the longest prompt (data.jsonl:3, 9 tokens)"
FIRST = "model-00001-of-00002.safetensors"
QKV = "model.layers.1.self_attn.k_proj.weight"
ROWS: dict[str, tuple[Callable[[Scene], None], str]] = {
    "context": (
        spec("rollout", maxTokens=50),
        f"{MOST}: is 50; {LONGEST} that is 59, and {CONTEXT} of 64 holds 58 (SGLang keeps 6); at most 49 fits",
    ),
    "cache": (
        spec("hybrid", inference={"kvTokens": 20}),
        f"{MOST}: is 8; {LONGEST} that is 17, and {CACHE} of 20 holds 14 (SGLang keeps 6); at most 5 fits",
    ),
    "a prompt alone": (
        long_prompt,
        f"data.jsonl:2: the longest prompt has 60 tokens, and {CONTEXT} of 64 holds 58 (SGLang keeps 6); leave",
    ),
    "vocabulary": (
        config(vocab_size=5),
        f"{FIRST}: model.embed_tokens.weight is [8, 16]; config.json makes it [5, 16]",
    ),
    "tokenizer": (
        lambda scene: tokenizer_folder(scene.model, "abcdefgh"),
        "tokenizer.json: has ids up to 9; the embedding has 8 rows (config.json: vocab_size); use the model's own",
    ),
    "a shard": (no_shard, f"{INDEX}: names 2 files, of which 1 are not there: {SECOND}; download the folder again"),
    "cut short": (cut, f"{SECOND}: is 10644 bytes long, its header says 10744; download the folder again"),
    "pointer": (pointer, f"{SECOND}: is only a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"),
    "empty file": (empty, f"{SECOND}: is 0 bytes long, its header alone would be 0: no safetensors file, or cut"),
    "no weights": (no_weights, f"model: has neither {WEIGHTS} nor {INDEX}; give a Hugging Face folder with"),
    "a tensor": (by_name(QKV), f"model: the weights lack 1 of the 25 tensors of Qwen3ForCausalLM, {QKV} first"),
    "a shape": (by_name("", **{QKV: (8, 16)}), f"{WEIGHTS}: {QKV} is [8, 16]; config.json makes it [16, 16]"),
    "a type": (by_name("", np.int8), f"{WEIGHTS}: model.embed_tokens.weight is stored as I8: quantised weights cannot"),
    "index": (
        lambda scene: scene.index({**scene.weight_map, "lm_head.weight": FIRST}),
        f"{INDEX}: says that {FIRST} holds lm_head.weight, which it does not",
    ),
    "quantised": (
        config(quantization_config={"quant_method": "awq"}),
        "config.json: quantization_config: the weights are quantised (awq), which cannot be trained",
    ),
    "family": (config(architectures=["MambaForCausalLM"]), "config.json: architectures: the trainer knows Llama"),
    "rope": (
        config(rope_scaling={"rope_type": "longrope", "factor": 4.0}),
        "config.json: rope_parameters.rope_type: is 'longrope', which the trainer does not know; use a model with one",
    ),
    "the largest micro-batch": (
        spec("algorithm", microBatchTokens=8, maxMicroBatchTokens=15),
        "spec.algorithm.maxMicroBatchTokens: is 15; the longest prompt (",
    ),
    "trainer's ranks": (
        spec("hybrid", trainer={"tensorParallel": 4}),
        "spec.hybrid.trainer.tensorParallel: 4 does not divide the model's 2 attention heads",
    ),
    "engine's ranks": (
        spec("hybrid", inference={"tensorParallel": 4, "kvTokens": 4096}),
        "spec.hybrid.inference.tensorParallel: 4 does not divide the model's 2 attention heads",
    ),
}
rows = pytest.mark.parametrize("row", list(ROWS))


def spoilt(scene: Scene, row: str) -> str:
    spoil, line = ROWS[row]
    spoil(scene)
    return line


@rows
def test_validate_refuses_it(scene: Scene, capsys: pytest.CaptureFixture[str], row: str) -> None:
    line = spoilt(scene, row)
    assert main(["validate", str(scene.file)]) == EXIT_INPUT
    one_line(capsys.readouterr().err, line)


@rows
def test_the_local_start_refuses_it_and_leaves_no_folder(
    scene: Scene, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    line = spoilt(scene, row)
    assert main(["run", str(scene.file), "--local", "--out", str(scene.base / "run")]) == EXIT_INPUT
    one_line(capsys.readouterr().err, line)
    assert not (scene.base / "run").exists()


@rows
def test_the_master_refuses_it_before_it_needs_anybody(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    line = spoilt(scene, row)
    given = {
        "JOB_NAME": "limits",
        "NAMESPACE": "default",
        "JOB_UID": "u",
        "POD": "limits-master",
        "ETCD": "localhost:1",
    }
    given |= {"ADDRESS": "localhost", "MASTER": "localhost:1", "JOB_FILE": str(scene.file)}
    given |= {name: str(scene.base / name.lower()) for name in ("STATE", "SNAPSHOTS", "RUN", "SHM", "TLS")}
    for name, value in given.items():
        monkeypatch.setenv(f"TWINPOD_{name}", value)
    assert master.main([]) == EXIT_INPUT
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (scene.base / "state").exists()


def one_line(said: str, line: str) -> None:
    assert line in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_what_fits_to_the_last_token_is_valid(scene: Scene) -> None:
    scene.job["spec"]["rollout"]["maxTokens"] = 64 - RESERVED - 9
    assert main(["validate", str(scene.file)]) == 0
    scene.job["spec"]["hybrid"]["inference"]["kvTokens"] = 63
    assert main(["validate", str(scene.file)]) == EXIT_INPUT


def test_a_stretched_context_counts(scene: Scene) -> None:
    scene.job["spec"]["rollout"]["maxTokens"] = 200
    scene.config({**CONFIG, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    assert main(["validate", str(scene.file)]) == 0


def test_a_pool_s_cache_is_looked_at_too(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    pool = {
        "apiVersion": "twinpod.dev/v1alpha1",
        "kind": "RolloutPool",
        "metadata": {"name": "helpers"},
        "spec": {"job": "limits", "inference": {"kvTokens": 20}},
    }
    both = scene.base / "both.yaml"
    both.write_text(f"{json.dumps(scene.job)}\n---\n{json.dumps(pool)}\n")
    assert main(["validate", str(both)]) == EXIT_INPUT
    assert "RolloutPool helpers spec.inference.kvTokens of 20 holds 14" in capsys.readouterr().err


def test_a_pointer_instead_of_a_configuration_or_a_tokenizer_says_so(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tokenizer.json", "config.json"):
        (scene.model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert main(["validate", str(scene.file)]) == EXIT_INPUT
        assert f"{name}: is only a pointer of git-lfs" in capsys.readouterr().err


def test_headers_say_what_safetensors_reads(scene: Scene) -> None:
    found = stored_tensors(scene.model)
    assert {name: one.shape for name, one in found.items()} == full_tensors(shape())
    assert {one.dtype for one in found.values()} == {"F32"}


def test_the_data_of_a_file_is_not_read(tmp_path: Path) -> None:
    """A file of 3 GiB, all of it a hole but the header."""
    header = json.dumps({"x": {"dtype": "BF16", "shape": [3 << 29], "data_offsets": [0, 3 << 30]}}).encode()
    path = tmp_path / WEIGHTS
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (3 << 30))
    assert read_header(path)["x"].shape == (3 << 29,)


@pytest.mark.parametrize(
    "content",
    [
        b"short",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"{}\xff\xff",
        (59).to_bytes(8, "little") + b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0,4]}}',
        (13).to_bytes(8, "little") + b'{"x": "wrong"}',
        b"\0" * 8,
    ],
)
def test_a_broken_header_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=WEIGHTS):
        stored_tensors(tmp_path)


def test_a_folder_in_a_cache_of_links_is_read_through_them(scene: Scene) -> None:
    blobs, snapshot = scene.base / "blobs", scene.base / "snapshots" / "0123"
    shutil.move(scene.model, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    scene.job["spec"]["model"] = {"from": str(snapshot)}
    assert main(["validate", str(scene.file)]) == 0

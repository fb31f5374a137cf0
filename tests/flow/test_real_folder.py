"""A whole run in local mode from a model folder as the Hugging Face hub leaves one: links into a cache below /tmp,
weights in several files, a stretched rope beyond its original context, an embedding larger than the tokenizer, a
tokenizer whose post-processor adds a BOS and has no padding token.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.unit.test_tokens import folder as tokenizer_folder
from tokenizers import Tokenizer as Vocabulary
from tokenizers import processors

from twinpod.master.books_read import open_read_only

pytestmark = [pytest.mark.timeout(1500), pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root")]
SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/smoke.yaml"
BOS, VOCAB = 13, 20  # the tokenizer's last id; rows of the embedding
GENERATION = {"eos_token_id": [1], "temperature": 0.6, "do_sample": True}


@pytest.fixture
def cache() -> Iterator[Path]:
    """Below /tmp whatever the tests' folder is: containers have a volume there."""
    folder = Path(tempfile.mkdtemp(prefix="twinpod-cache-", dir="/tmp"))  # that is the point
    yield folder
    shutil.rmtree(folder)


def hub_folder(cache: Path) -> Path:
    """`models--a--b/snapshots/REVISION`, every file of it a relative link to a blob."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    blobs, snapshot = cache / "models--a--b/blobs", cache / "models--a--b/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 4,
            "attention_factor": 1.4,
        },
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=None,
        bos_token_id=BOS,
    )
    torch.manual_seed(3)
    Qwen3ForCausalLM(config).save_pretrained(blobs, max_shard_size="20KB")
    tokenizer_folder(blobs, "abcdefghij=")
    vocabulary = Vocabulary.from_file(str(blobs / "tokenizer.json"))
    vocabulary.add_special_tokens(["<bos>"])
    vocabulary.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    vocabulary.save(str(blobs / "tokenizer.json"))
    (blobs / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "pad_token": None}))
    (blobs / "generation_config.json").write_text(json.dumps(GENERATION))
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"blob-{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{number}")
    return snapshot


def job(folder: Path) -> dict[str, Any]:
    made = dict(yaml.safe_load(SAMPLE.read_text()))
    spec = made["spec"]
    spec["model"] = {"from": str(folder)}
    spec["rollout"] = {"maxTokens": 12}  # beyond the original context of 4
    spec["iterations"] = 2
    return made


def test_a_folder_of_the_hub_is_trained_and_exported_whole(tmp_path: Path, cache: Path) -> None:
    folder = hub_folder(cache)
    (tmp_path / "job.yaml").write_text(json.dumps(job(folder)))
    words = ["run", "job.yaml", "--local", "--no-live", "--out", "run"]
    command = [sys.executable, "-m", "twinpod.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    db = open_read_only(tmp_path / "run/state/books.sqlite")
    gaps = [gap for (gap,) in db.execute("SELECT weights_gap FROM iterations")]
    assert len(gaps) == 2
    assert max(gaps) < 1e-5, "trainer and engine turn by the same angles"
    prompts = [np.frombuffer(tokens, "<i4") for (tokens,) in db.execute("SELECT tokens FROM prompts")]
    assert prompts
    assert all((tokens == BOS).tolist() == [True] + [False] * (len(tokens) - 1) for tokens in prompts)
    answers = list(db.execute("SELECT correct, tokens FROM trajectories JOIN segments USING (trajectory_id)"))
    beyond = [right for right, tokens in answers if (np.frombuffer(tokens, "<i4") > BOS).any()]
    assert beyond, "an untrained model writes ids that have no text"
    assert not any(beyond)
    db.close()

    export = tmp_path / "run/snapshots/export"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (export / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((export / "generation_config.json").read_text()) == GENERATION
    config = json.loads((export / "config.json").read_text())
    assert config["rope_parameters"] == json.loads((folder / "config.json").read_text())["rope_parameters"]
    assert config["max_position_embeddings"] == 4

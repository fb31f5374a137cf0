"""The model folder is what `transformers` and `tokenizers` open; a wrong one is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinpod.api.character_tokenizer import tokens_of
from twinpod.api.load import load_manifest
from twinpod.api.model_folder import hf_config, vocabulary, write_model_folder
from twinpod.api.types import RLJob
from twinpod.api.yaml_text import read_document, write_document
from twinpod.errors import InputError

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "reverse-letters.yaml"


def job_with(model: dict[str, Any]) -> RLJob:
    document = read_document(SAMPLE.read_text(encoding="utf-8"))
    document["spec"]["model"] |= model
    document["spec"]["model"] = {key: value for key, value in document["spec"]["model"].items() if value is not None}
    return load_manifest(write_document(document))


def test_special_tokens_come_first_and_then_the_characters_in_order() -> None:
    job = job_with({})
    assert vocabulary(job) == ("<pad>", "<eos>", *"abcdefghij=")
    config = hf_config(job)
    assert (config["vocab_size"], config["pad_token_id"], config["eos_token_id"]) == (13, 0, 1)


def test_pieces_of_longer_characters_come_after_all_characters() -> None:
    tokens = tokens_of("aé€")
    assert len(tokens) == len(set(tokens)) == 2 + 3 + 2 + 4
    assert tokens[2] == "a"


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "opt"])
@pytest.mark.parametrize(
    ("characters", "text"),
    [
        ("abcdefghij=", "abcde=jj"),
        ("abcXYZ 0123=?:.,()->\n", "a b  c (X -> Z): \n?0123"),
        ("aéü€😀 ", "é€ a😀üa"),
    ],
)
def test_every_reader_gives_one_token_a_character_and_the_text_back(
    tmp_path: Path, architecture: str, characters: str, text: str
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    job = job_with({"tokenizer": {"characters": characters}})
    assert job.spec.model.config is not None
    changed = job.spec.model.config.model_copy(update={"architecture": architecture})
    model = job.spec.model.model_copy(update={"config": changed})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"model": model})})
    write_model_folder(job, tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [2 + characters.index(character) for character in text]
    assert auto.encode(text) == plain.encode(text).ids == ids
    assert auto.decode(ids) == plain.decode(ids) == text
    assert auto.decode([*ids, 1], skip_special_tokens=True) == text
    assert (auto.pad_token_id, auto.eos_token_id, len(auto)) == (0, 1, hf_config(job)["vocab_size"])
    opened = transformers.AutoConfig.from_pretrained(tmp_path)
    config = hf_config(job)
    assert (opened.model_type, opened.eos_token_id) == (architecture, 1)
    understood = config.keys() - {"dtype", "torch_dtype", "rope_theta"}  # the last: in rope_parameters
    assert {name: getattr(opened, name) for name in understood} == {name: config[name] for name in understood}


def test_a_character_without_a_token_is_an_error_and_not_lost(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    write_model_folder(job_with({}), tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Exception, match="UNK"):
        plain.encode("abZ")


def test_writing_twice_gives_the_same_files_and_leaves_no_others(tmp_path: Path) -> None:
    job = job_with({})
    write_model_folder(job, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_model_folder(job, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_folder_given_by_from_is_taken_over(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write_model_folder(job_with({}), source)
    job = job_with({"config": None, "tokenizer": None, "from": str(source)})
    write_model_folder(job, target)
    assert hf_config(job) == hf_config(job_with({}))
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert json.loads((target / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == 1


def test_a_tokenizer_folder_gives_the_vocabulary_of_a_random_model(tmp_path: Path) -> None:
    write_model_folder(job_with({}), tmp_path / "tokenizer")
    config = hf_config(job_with({"tokenizer": {"path": str(tmp_path / "tokenizer")}}))
    assert (config["vocab_size"], config["pad_token_id"], config["eos_token_id"]) == (13, 0, 1)


@pytest.mark.parametrize("value", [None, "absent", {"__type": "AddedToken", "content": None}])
def test_no_padding_token_is_not_the_word_none(tmp_path: Path, value: object) -> None:
    write_model_folder(job_with({}), tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["None"] = 13
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    named = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": value}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    config = hf_config(job_with({"tokenizer": {"path": str(tmp_path)}}))
    assert (config["vocab_size"], config["pad_token_id"], config["eos_token_id"]) == (14, None, 1)


@pytest.mark.parametrize(
    ("files", "model", "line"),
    [
        (
            [],
            {"config": None, "tokenizer": None, "from": "{}/none"},
            "spec.model.from: there is no folder {}/none; give",
        ),
        (
            [],
            {"config": None, "tokenizer": None, "from": "{}"},
            "spec.model.from: {} has no config.json; give a complete",
        ),
        (
            ["config.json"],
            {"config": None, "tokenizer": None, "from": "{}"},
            "spec.model.from: {} has no tokenizer.json; save the tokenizer there",
        ),
        (
            [],
            {"tokenizer": {"path": "{}/none"}},
            "spec.model.tokenizer.path: there is no folder {}/none; give the path",
        ),
        ([], {"tokenizer": {"path": "{}"}}, "spec.model.tokenizer.path: {} has no tokenizer.json; give a complete"),
    ],
)
def test_a_wrong_folder_is_refused_before_anything_is_written(
    tmp_path: Path, files: list[str], model: dict[str, Any], line: str
) -> None:
    for name in files:
        (tmp_path / name).write_text(json.dumps(hf_config(job_with({}))), encoding="utf-8")
    job = job_with(json.loads(json.dumps(model).replace("{}", str(tmp_path))))
    with pytest.raises(InputError) as caught:
        write_model_folder(job, tmp_path / "out")
    assert str(caught.value).startswith(line.replace("{}", str(tmp_path)))
    assert not (tmp_path / "out").exists()

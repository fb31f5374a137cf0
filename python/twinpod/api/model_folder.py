"""The Hugging Face folder (configuration and tokenizer, no weights) from which trainer, engine and master read a model.

One folder a pod, written by whoever comes first: files are renamed into place, so several processes may write the same
one at once. The vocabulary is padded nowhere (Megatron pads by itself).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from twinpod.api.character_tokenizer import EOS_ID, PAD_ID, tokenizer_config, tokenizer_json, tokens_of
from twinpod.api.safetensors_header import refuse_pointer
from twinpod.api.types import Architecture, RLJob
from twinpod.errors import EnvironmentFault, InputError
from twinpod.records.model_shape import shape_from_huggingface

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "opt": "OPTForCausalLM",
}


def vocabulary(job: RLJob) -> tuple[str, ...]:
    """Tokens of the job's character tokenizer by id; InputError when it has none."""
    tokenizer = job.spec.model.tokenizer
    if tokenizer is None or tokenizer.characters is None:
        raise InputError("has no characters; the vocabulary is in a tokenizer folder", where="spec.model.tokenizer")
    return tokens_of(tokenizer.characters)


def hf_config(job: RLJob) -> dict[str, Any]:
    """Content of `config.json`: for `model.config` from the spec, for `model.from` the folder's own.

    Reads files only for `model.from` and for a tokenizer folder, whose vocabulary gives the size.
    """
    shape = job.spec.model.config
    if shape is None:
        return _read_json(_source(job) / "config.json", "spec.model.from")
    pad, eos, vocab = _special_ids(job)
    return {
        "architectures": [CLASSES[shape.architecture]],
        "model_type": shape.architecture,
        "vocab_size": vocab,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.max_positions,
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tie_embeddings,
        "use_cache": True,
        "dtype": job.spec.model.dtype,
        "torch_dtype": job.spec.model.dtype,
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": eos,
        **(_opt_fields(shape) if shape.architecture == "opt" else _rotary_fields(shape)),
    }


def _rotary_fields(shape: Architecture) -> dict[str, Any]:
    """What Qwen2, Qwen3 and Llama have in `config.json` and OPT has not."""
    config: dict[str, Any] = {
        "intermediate_size": shape.ffn_size,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-6,
        "rope_theta": float(shape.rope_theta),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(shape.rope_theta)},
        "hidden_act": "silu",
        "initializer_range": 0.02,
    }
    if shape.architecture != "llama":
        config["use_sliding_window"] = False
    if shape.architecture != "qwen2":
        config["attention_bias"] = False
    if shape.architecture == "llama":
        config["mlp_bias"] = False
    return config


def _opt_fields(shape: Architecture) -> dict[str, Any]:
    """What OPT has in `config.json` (transformers `OPTConfig`)."""
    return {
        "ffn_dim": shape.ffn_size,
        "word_embed_proj_dim": shape.hidden_size,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
        "dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
    }


def write_model_folder(job: RLJob, folder: Path) -> None:
    """Write config.json, generation_config.json and the tokenizer's files into `folder` (made when it is not there).

    InputError names a folder of `model.from` or `tokenizer.path` that is missing or incomplete, before anything is
    written; EnvironmentFault when the folder cannot be written.
    """
    files: dict[str, str | Path] = {"config.json": _text(_engine_config(hf_config(job)))}
    tokenizer = job.spec.model.tokenizer
    if tokenizer is not None and tokenizer.characters is not None:
        files |= {
            "tokenizer.json": _text(tokenizer_json(tokenizer.characters)),
            "tokenizer_config.json": _text(tokenizer_config(_longest(job))),
        }
    else:
        files |= _tokenizer_of(job)
    files["generation_config.json"] = _text(_generation(job))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _place(content, folder / name)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write the model folder: {error.strerror}", where=str(folder), mend="free space or rights there"
        ) from error


def _engine_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` as SGLang reads it like the trainer: the whole context, and every number of a scaled rope."""
    shape = shape_from_huggingface(config)
    if shape.rope is None or shape.rope.scaling is None:
        return config
    kept = {key: value for key, value in config.items() if key not in ROPE_FIELDS}
    theta = {"rope_theta": shape.rope.theta}
    return {**kept, **theta, "max_position_embeddings": shape.max_positions, "rope_parameters": shape.rope.parameters()}


def _longest(job: RLJob) -> int:
    return shape_from_huggingface(hf_config(job)).max_positions


def _special_ids(job: RLJob) -> tuple[int | None, int | None, int]:
    """(pad, eos, vocabulary size) of the job's tokenizer."""
    tokenizer = job.spec.model.tokenizer
    if tokenizer is not None and tokenizer.characters is not None:
        return PAD_ID, EOS_ID, len(vocabulary(job))
    folder = _tokenizer_folder(job)
    where = "spec.model.tokenizer.path"
    content = _read_json(folder / "tokenizer.json", where)
    ids = {str(entry["content"]): int(entry["id"]) for entry in content.get("added_tokens", ())}
    vocab = content.get("model", {}).get("vocab", {})
    known = (
        {str(token): int(number) for token, number in vocab.items()}
        if isinstance(vocab, dict)
        else {str(entry[0]): number for number, entry in enumerate(vocab)}
    )
    named = _read_json(folder / "tokenizer_config.json", where)
    everything = {**known, **ids}
    pad, eos = (_token_text(named.get(name)) for name in ("pad_token", "eos_token"))
    return (
        None if pad is None else everything.get(pad),
        None if eos is None else everything.get(eos),
        max(everything.values(), default=-1) + 1,
    )


def _token_text(value: object) -> str | None:
    """Tokenizer configurations name a token by text or by an object with `content`; None when it names none."""
    named = value.get("content") if isinstance(value, dict) else value
    return named if isinstance(named, str) else None


def _generation(job: RLJob) -> dict[str, Any]:
    """`generation_config.json`: the folder's own for `model.from`, else the special tokens alone."""
    if job.spec.model.config is None:
        own = _source(job) / "generation_config.json"
        return _read_json(own, "spec.model.from") if own.exists() else {}
    pad, eos, _ = _special_ids(job)
    return {"pad_token_id": pad, "eos_token_id": eos, "do_sample": False}


def _source(job: RLJob) -> Path:
    """Folder of `model.from` or `model.fromSnapshot`; InputError when it is not one."""
    folder = Path(job.spec.model.folder or "")
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}",
            where="spec.model.fromSnapshot.folder" if job.spec.model.from_snapshot else "spec.model.from",
            mend="give the path of a Hugging Face model folder as the containers see it, for example below "
            "/var/lib/twinpod/snapshots",
        )
    return folder


def _tokenizer_folder(job: RLJob) -> Path:
    tokenizer = job.spec.model.tokenizer
    if tokenizer is None or tokenizer.path is None:
        return _source(job)
    folder = Path(tokenizer.path)
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}",
            where="spec.model.tokenizer.path",
            mend="give the path of a folder with tokenizer.json, or use tokenizer.characters",
        )
    return folder


def _tokenizer_of(job: RLJob) -> dict[str, str | Path]:
    """The files of a tokenizer folder that are there; tokenizer.json must be."""
    folder = _tokenizer_folder(job)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder} has no tokenizer.json",
            where="spec.model.tokenizer.path" if job.spec.model.tokenizer else "spec.model.from",
            mend="save the tokenizer there with `transformers`: tokenizer.save_pretrained(folder)",
        )
    return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        text = path.read_bytes()
        refuse_pointer(text, path)
        content = json.loads(text)
    except FileNotFoundError as error:
        raise InputError(
            f"{path.parent} has no {path.name}", where=where, mend="give a complete Hugging Face folder"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}", where=where, mend="save the folder again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object", where=where, mend="save the folder again")
    return content


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _place(content: str | Path, target: Path) -> None:
    """Write or copy to a temporary name beside the target, then rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    if isinstance(content, Path):
        shutil.copyfile(content, temporary)
    else:
        temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, target)

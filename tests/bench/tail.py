"""A workload whose answers have a long tail of lengths, to compare partial rollouts with full ones.

The model is made, not trained: layers whose outputs are zero leave the current token's embedding, a unit vector, in the
residual stream, so the output matrix is a table of log-probabilities of the next token given the current one. A prompt
ends in one of sixteen keys. Fifteen of them lead to small letters, where each letter ends the answer with probability
1/6; the last leads to capitals, where it is 1/LONG: one group of sixteen has answers of some LONG tokens, cut at MOST.

What there is to learn: each key wants one certain first letter, 1 of 8 in the beginning. The layers are real and are
trained as any; only their first values are zero. The learning rate is so small that the lengths stay as they are, and
both runs train on the same distribution: their rewards per trained token can be compared.

Full: every answer is generated whole within its iteration. Partial: more groups are in flight than an iteration trains
on, and what is unfinished when enough groups are done goes on in the next iterations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from twinpod.api.load import check
from twinpod.api.model_folder import hf_config
from twinpod.api.types import RLJob
from twinpod.records.rollout import Prompt
from twinpod.sampling.items import Item

KEYS, SMALL, CAPITAL = "0123456789!#$%&*", "abcdefgh", "ABCDEFGH"
CHARACTERS = KEYS + SMALL + CAPITAL
EOS = 1
LONG = 1000  # tokens after which an answer in capitals ends, on average
MOST = 1024  # tokens of an answer
NEVER = -12.0  # log-probability of a token that does not follow
GROUPS, SAMPLES = len(KEYS), 4  # groups an iteration, answers a group
PROMPTS = GROUPS  # a pass over them is an iteration: each has one group with a long tail
IN_FLIGHT, SEGMENT, AGE = 18, 128, 64
SHAPE = {
    "architecture": "qwen2",
    "hiddenSize": 64,
    "layers": 1,
    "heads": 1,
    "kvHeads": 1,
    "ffnSize": 128,
    "maxPositions": MOST + 16,
}


def job(folder: Path, *, partial: bool, iterations: int) -> dict[str, Any]:
    """The manifest; `folder` is what `write_model` has written."""
    rollout = {"maxTokens": MOST, "maxSegmentAge": AGE}
    if partial:
        rollout |= {"segmentTokens": SEGMENT, "groupsInFlight": IN_FLIGHT}
    return {
        "apiVersion": "twinpod.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": f"tail-{'partial' if partial else 'full'}"},
        "spec": {
            "iterations": iterations,
            "model": {"from": str(folder), "tokenizer": {"characters": CHARACTERS}},
            "dataset": {"entryPoint": {"target": f"{__name__}:prompts"}, "size": PROMPTS, "heldOut": 0},
            "algorithm": {
                "groupSize": SAMPLES,
                "groupsPerIteration": GROUPS,
                "learningRate": "1e-4",
                "microBatchTokens": 8192,
            },
            "rollout": rollout,
            "reward": {"kind": "entryPoint", "target": f"{__name__}:score"},
            "hybrid": {"sharedMemory": "64Mi", "lifeCycle": "Keep", "inference": {"kvTokens": 131_072}},
            "storage": {"snapshotEvery": 1000},
        },
    }


def prompts(settings: dict[str, Any], seed: int, size: int) -> Iterator[Item]:
    """`size` distinct prompts: three letters and a key, all keys equally often."""
    draw = Random(seed)
    letters = draw.sample(range(len(SMALL) ** 3), k=-(-size // len(KEYS)))
    for number in range(size):
        place, key = divmod(number, len(KEYS))
        text = "".join(SMALL[letters[place] // len(SMALL) ** digit % len(SMALL)] for digit in range(3))
        yield Item(prompt=text + KEYS[key], answer=wanted(KEYS[key]))


def wanted(key: str) -> str:
    """The first letter that a key asks for."""
    return (CAPITAL if key == KEYS[-1] else SMALL)[KEYS.index(key) * 3 % 8]


def score(prompt: Prompt, text: str) -> float:
    """1 when the answer begins with the letter that the key asks for."""
    return float(text[:1] == prompt.answer)


def chain() -> list[list[float]]:
    """Log-probabilities `[current token][next token]` of the vocabulary (padding, end, CHARACTERS)."""
    size = 2 + len(CHARACTERS)
    ids = {character: 2 + place for place, character in enumerate(CHARACTERS)}
    table = [[NEVER] * size for _ in range(size)]
    for character in CHARACTERS:
        letters = CAPITAL if character in CAPITAL + KEYS[-1] else SMALL
        end = 0.0 if character in KEYS else 1 / LONG if letters is CAPITAL else 1 / 6
        row = table[ids[character]]
        for letter in letters:
            row[ids[letter]] = math.log((1 - end) / len(letters))
        if end:
            row[EOS] = math.log(end)
    return table


def write_model(folder: Path) -> None:
    """config.json and model.safetensors of the model described above."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    document = job(folder, partial=False, iterations=1)
    document["spec"]["model"] = {"config": SHAPE, "tokenizer": {"characters": CHARACTERS}}
    made = check(document)
    assert isinstance(made, RLJob)
    config = hf_config(made)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{key: value for key, value in config.items() if key != "torch_dtype"}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        hidden, table = int(config["hidden_size"]), torch.tensor(chain())
        vocab = table.shape[0]
        model.model.embed_tokens.weight.copy_(torch.eye(vocab, hidden))
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :vocab] = table.T / math.sqrt(hidden)  # the last norm makes the unit vector this long
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")

"""Greedy answers of an exported folder, by transformers alone.

    python -m twinpod.cli.greedy JOB.json FOLDER BOOKS|- PATH...

A process of its own, because it imports torch and the command line must not. Nothing of Twinpod's trainer or engine
takes part, so that the number proves the folder. BOOKS tell how many items the data set had when the run began; `-`
where they are not at hand: as many as it has now. PATH: folders in which who asks finds modules of the user's. Prints
{"exactMatch": ..., "prompts": ...}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from twinpod.api.load import load_manifest
from twinpod.api.types import JobSpec
from twinpod.master.books_data import begun_with
from twinpod.master.books_read import open_read_only
from twinpod.master.judges import Lost, open_scorer
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt
from twinpod.sampling.datasets import open_dataset
from twinpod.sampling.tokens import Tokenizer, fill

BATCH = 64


def main(job_file: Path, folder: Path, books: Path | None) -> dict[str, float]:
    """Share of held-out prompts whose greedy answer the job's own reward calls wholly right."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    job = load_manifest(job_file)
    dataset = open_dataset(job.spec.dataset, job.spec.seed)
    began: int | None = None
    if books is not None:
        with contextlib.closing(open_read_only(books)) as db:
            began = begun_with(db)
    parts = dataset.parts(began)
    tokenizer, reading = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    by_length: dict[int, list[tuple[Prompt, list[int]]]] = defaultdict(list)  # equal lengths need no padding
    for number, item in enumerate(dataset.items[place] for place in parts.held_out):
        text = fill(job.spec.dataset.template, item.prompt)
        plain = TokenIds(tokenizer.encode(text, add_special_tokens=False))
        ids = reading.opened(plain) if job.spec.dataset.add_special_tokens else plain
        prompt = Prompt(prompt_id=-1 - number, text=text, answer=item.answer, difficulty=item.difficulty, tokens=ids)
        by_length[len(ids)].append((prompt, list(ids)))
    answered: list[tuple[Prompt, str]] = []
    for entries in by_length.values():
        for start in range(0, len(entries), BATCH):
            part = entries[start : start + BATCH]
            answers = _answers(model, reading, [ids for _, ids in part], job.spec.rollout.max_tokens)
            answered += [(prompt, answer) for (prompt, _), answer in zip(part, answers, strict=True)]
    right = asyncio.run(_right(job.spec, dataset.keys(parts), answered))
    return {"exactMatch": right / len(answered) if answered else float("nan"), "prompts": len(answered)}


async def _right(job: JobSpec, keys: Mapping[int, int], answered: Sequence[tuple[Prompt, str]]) -> int:
    """How many answers the job's reward calls wholly right; one that it cannot judge is not."""
    async with AsyncExitStack() as stack:
        scorer = await open_scorer(job, keys, stack.enter_context(ThreadPoolExecutor(1)), stack)

        async def one(prompt: Prompt, answer: str) -> bool:
            try:
                verdict = await scorer.score(prompt, answer)
            except Lost:
                return False
            return verdict.correct and not verdict.error

        return sum(await asyncio.gather(*(one(*pair) for pair in answered)))


def _answers(model: Any, reading: Tokenizer, rows: list[list[int]], most: int) -> list[str]:
    import torch

    inputs = torch.tensor(rows)
    with torch.inference_mode():
        outputs = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=most, do_sample=False)
    return [reading.decode(TokenIds(row)) for row in outputs[:, inputs.shape[1] :].tolist()]


if __name__ == "__main__":
    sys.path.extend(folder for folder in sys.argv[4:] if folder not in sys.path)
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), None if sys.argv[3] == "-" else Path(sys.argv[3]))))

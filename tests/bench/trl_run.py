"""One process: TRL's GRPOTrainer on the task of `reverse-letters`, as a user of TRL would write it. Prints a JSON line.

Same model (random weights of the same shape), prompts, samples an iteration, optimizer steps, learning rate,
temperature and reward. What differs is what TRL is: its own loss, and generation by transformers in the same process.
`python -m tests.bench.trl_run MANIFEST SEED ITERATIONS`, with TRL on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from twinpod.api.load import load_manifest
from twinpod.api.model_folder import write_model_folder
from twinpod.reward.prefix import prefix_share
from twinpod.sampling.letters import reverse


def main() -> int:
    """Trains; the line has the seconds of each iteration and the mean reward of each."""
    manifest, seed, iterations = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer

    job = load_manifest(manifest)
    spec, algorithm = job.spec, job.spec.algorithm
    set_seed(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_model_folder(job, folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        entry = spec.dataset.entry_point
        assert entry is not None
        items = islice(reverse(entry.settings, seed, 10_000), 10_000)
        rows = [{"prompt": item.prompt + "=", "answer": item.answer} for item in items]
        rewards: list[float] = []
        clock: list[float] = []

        def score(completions: list[str], answer: list[str], **_: Any) -> list[float]:
            scores = [prefix_share(right, text) for right, text in zip(answer, completions, strict=True)]
            rewards.append(sum(scores) / len(scores))
            return scores

        class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
            """Notes when each pair of steps is over."""

            def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
                """See transformers."""
                if state.global_step % algorithm.steps_per_iteration == 0:
                    clock.append(time.perf_counter())

        trainer = GRPOTrainer(
            model=model,
            reward_funcs=score,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=str(Path(place) / "out"),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=algorithm.group_size * algorithm.groups_per_iteration,
                num_generations=algorithm.group_size,
                steps_per_generation=1,
                num_iterations=algorithm.steps_per_iteration,
                max_steps=iterations * algorithm.steps_per_iteration,
                max_completion_length=spec.rollout.max_tokens,
                temperature=float(spec.rollout.temperature),
                top_k=0,
                learning_rate=float(algorithm.learning_rate),
                lr_scheduler_type="constant",
                adam_beta1=float(algorithm.betas[0]),
                adam_beta2=float(algorithm.betas[1]),
                weight_decay=float(algorithm.weight_decay),
                max_grad_norm=float(algorithm.clip_grad),
                beta=0.0,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                seed=seed,
                disable_tqdm=True,
            ),
        )
        began = time.perf_counter()
        trainer.train()
    ends = [moment - began for moment in clock]
    print(json.dumps({"seconds": [b - a for a, b in zip([0.0, *ends], ends, strict=False)], "rewards": rewards}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a small run is made of: settings, prompts, answers of a model that was never trained, shards and commits."""

from __future__ import annotations

import math

from twinpod.master.settings import MasterSettings
from twinpod.records.arrays import LogProbs, TokenIds
from twinpod.records.life import LifeCycle
from twinpod.records.rollout import Prompt, SamplingSettings, Segment, Stop, WorkItem, WorkResult
from twinpod.records.run import IterationRecord, PhaseSeconds
from twinpod.records.training import GIVEN, RankBatch, Sample, StepStats, TrainStats
from twinpod.records.weights import ShardRef
from twinpod.replay.baseline import Baseline
from twinpod.reward.port import Verdict

EOS = 1


def settings(**changes: object) -> MasterSettings:
    """A small run: 4 groups of 2, answers of 1 to 6 tokens in segments of 3."""
    values: dict[str, object] = {
        "iterations": 3,
        "seed": 7,
        "group_size": 2,
        "groups_per_iteration": 4,
        "groups_in_flight": 6,
        "mini_batches": 1,
        "sampling": SamplingSettings(
            temperature=1.0,
            top_p=1.0,
            segment_tokens=3,
            max_tokens=6,
            stop_token_ids=(EOS,),
            repeat_ngram=0,
            repeat_count=0,
        ),
        "max_segment_age": 8,
        "repeat_penalty": 0.0,
        "baseline": Baseline.MEAN,
        "tau": 0.1,
        "weights_gap_limit": 1e-3,
        "snapshot_every": 1,
        "keep_iterations": 50,
        "hybrid_replicas": 1,
        "life_cycle": LifeCycle.RESTART,
        "moves_memory": False,
    }
    return MasterSettings(**(values | changes))  # type: ignore[arg-type]  # the names are the record's own


def prompts(count: int, first: int = 0) -> tuple[Prompt, ...]:
    """Prompts without meaning."""
    return tuple(
        Prompt(prompt_id=n, text=f"p{n}", answer=str(n), difficulty=0.0, tokens=TokenIds((2, 3 + n % 5)))
        for n in range(first, first + count)
    )


def answer_length(trajectory_id: int, most: int) -> int:
    """Tokens that the fake model answers with, the end included; fixed for a trajectory."""
    return 1 + (trajectory_id * 2654435761 >> 7) % most


def generate(item: WorkItem, worker: str, cut_after: int = 1_000_000) -> WorkResult:
    """What an engine would answer; `cut_after`: tokens that each trajectory gets before it is cut. Pure."""
    segments = []
    for one in item.trajectories:
        whole = min(answer_length(one.trajectory_id, item.sampling.max_tokens + 2), item.sampling.max_tokens)
        ends = answer_length(one.trajectory_id, item.sampling.max_tokens + 2) <= item.sampling.max_tokens
        have = len(one.tokens)
        whole = max(whole, have + 1)  # begun under another limit, it might be shorter than it is
        room = min(item.sampling.segment_tokens, cut_after, whole - have)
        if room <= 0:
            continue
        done = have + room == whole
        stop = (Stop.EOS if ends else Stop.LENGTH) if done else Stop.CUT if room == cut_after else Stop.BUDGET
        tokens = [10 + (one.trajectory_id + have + n) % 90 for n in range(room)]
        tokens[-1] = EOS if stop is Stop.EOS else tokens[-1]
        segments.append(
            Segment(
                trajectory_id=one.trajectory_id,
                index=one.index,
                version=item.version,
                tokens=TokenIds(tokens),
                logps=LogProbs([-0.5] * len(tokens)),
                stop=stop,
                pod=worker,
            )
        )
    return WorkResult(
        item_id=item.item_id,
        worker=worker,
        trajectories=tuple(one.trajectory_id for one in item.trajectories),
        segments=tuple(segments),
        failed="",
        refused_versions=0,
        seconds=0.0,
    )


class LengthReward:
    """Share of the longest possible answer; says what it was asked."""

    def score(self, prompt: Prompt, answer_text: str) -> Verdict:
        """See RewardPort."""
        length = len(answer_text.split())
        return Verdict(reward=length / 6, correct=length == 6)


def answer(sample: Sample) -> tuple[int, ...]:
    """What stands behind a sample's prompt."""
    return tuple(sample.tokens[sample.runs[0].count :])


def stats(iteration: int, gap: float, batch: RankBatch) -> TrainStats:
    """What a training phase might say."""
    runs = [run for sample in batch.samples for run in sample.runs if run.version != GIVEN]
    fresh = sum(run.count for run in runs if run.version == batch.version)
    tokens = sum(run.count for run in runs)
    return TrainStats(
        iteration=iteration,
        loss=0.5,
        learning_rate=1e-3,
        grad_norm=1.0,
        clipped=0.0,
        entropy=1.0,
        log_ratio=0.0,
        weights_gap=gap,
        on_policy_tokens=fresh,
        tokens=tokens,
        reference_seconds=0.0,
        step_seconds=0.0,
        steps=(StepStats(loss=0.5, grad_norm=1.0, clipped=0.0, log_ratio=0.0, entropy=1.0),),
    )


def shard(version: int, pod: str = "j-hybrid-0") -> ShardRef:
    """What one rank would publish."""
    return ShardRef(
        owner=f"{pod}/rank-0",
        layout=f"xxh3:{'w':0>32}",
        path="/dev/shm/x",
        slot=version % 2,
        digest=f"xxh3:{version:016x}",
        address=f"training:{pod}",
    )


def record(iteration: int, *, version: int, snapshot: str = "", groups: int = 1) -> IterationRecord:
    """A commit with made-up numbers."""
    seconds = PhaseSeconds(generate=1.0, train=1.0, weights=0.0, switch=0.0, snapshot=0.0, other=0.0)
    return IterationRecord(
        iteration=iteration, line=1, epoch=1, version=version, snapshot=snapshot, groups=groups, samples=2,
        reward=0.5, right=math.nan, length=2.0, tokens_generated=4, tokens_trained=4, loss=0.1, weights_gap=math.nan,
        stats="", seconds=seconds, committed_at=1.0, rolled_back=False,
    )  # fmt: skip

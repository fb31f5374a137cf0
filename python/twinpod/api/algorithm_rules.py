"""What the fields of `spec.algorithm` demand of each other."""

from __future__ import annotations

from twinpod.api.rules import Rule, has


def above_zero(path: str, field: str) -> Rule:
    """A decimal that must not be 0."""
    return Rule(
        path=path,
        field=field,
        cel=f"double(self.{field}) > 0.0",
        holds=lambda self: float(getattr(self, field)) > 0.0,
        message=f'is "{{self.{field}}}"; must be above 0',
    )


ALGORITHM_RULES = (
    Rule(
        path="spec.algorithm",
        field="maxMicroBatchTokens",
        cel="!has(self.maxMicroBatchTokens) || self.maxMicroBatchTokens >= self.microBatchTokens",
        holds=lambda self: not has(self, "maxMicroBatchTokens") or self.maxMicroBatchTokens >= self.microBatchTokens,
        message="{self.maxMicroBatchTokens} is below microBatchTokens ({self.microBatchTokens})",
    ),
    Rule(
        path="spec",
        field="algorithm.maxMicroBatchTokens",
        cel=(
            "!has(self.algorithm.maxMicroBatchTokens) || self.algorithm.maxMicroBatchTokens >= self.rollout.maxTokens"
        ),
        holds=lambda self: (
            not has(self, "algorithm.maxMicroBatchTokens")
            or self.algorithm.maxMicroBatchTokens >= self.rollout.maxTokens
        ),
        message=(
            "{self.algorithm.maxMicroBatchTokens} cannot hold a prompt and an answer of rollout.maxTokens"
            " ({self.rollout.maxTokens})"
        ),
    ),
    above_zero("spec.algorithm", "learningRate"),
    above_zero("spec.algorithm", "eps"),
    above_zero("spec.algorithm", "clipGrad"),
    Rule(
        path="spec.algorithm",
        field="betas",
        cel="self.betas.all(b, double(b) < 1.0)",
        holds=lambda self: all(float(beta) < 1.0 for beta in self.betas),
        message="each must be below 1",
    ),
    Rule(
        path="spec.algorithm",
        field="tau",
        cel="self.baseline != 'logMeanExp' || double(self.tau) > 0.0",
        holds=lambda self: self.baseline != "logMeanExp" or float(self.tau) > 0.0,
        message='is "{self.tau}"; baseline logMeanExp divides by it, so it must be above 0',
    ),
    Rule(
        path="spec.algorithm",
        field="miniBatches",
        cel="self.miniBatches <= self.groupsPerIteration",
        holds=lambda self: self.miniBatches <= self.groupsPerIteration,
        message="{self.miniBatches} is above groupsPerIteration ({self.groupsPerIteration}); each has a group at least",
    ),
    Rule(
        path="spec.algorithm",
        field="learningRateSchedule.minimum",
        cel="double(self.learningRateSchedule.minimum) <= double(self.learningRate)",
        holds=lambda self: float(self.learningRateSchedule.minimum) <= float(self.learningRate),
        message='"{self.learningRateSchedule.minimum}" is above learningRate ("{self.learningRate}"): a decay falls',
    ),
    Rule(
        path="spec",
        field="algorithm.learningRateSchedule.warmupIterations",
        cel=(
            "self.algorithm.learningRateSchedule.warmupIterations == 0"
            " || self.algorithm.learningRateSchedule.warmupIterations < self.iterations"
        ),
        holds=lambda self: (
            self.algorithm.learningRateSchedule.warmupIterations == 0
            or self.algorithm.learningRateSchedule.warmupIterations < self.iterations
        ),
        message=(
            "{self.algorithm.learningRateSchedule.warmupIterations} is no fewer than iterations ({self.iterations}): no"
            " iteration would have the whole rate"
        ),
    ),
)

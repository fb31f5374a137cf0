"""Rules of the engines of a pod and of what accelerators need: how many there are, their memory, their environment."""

from __future__ import annotations

import re

from twinpod.api.patch_rules import OWN_VARIABLES
from twinpod.api.pods import CPU_KV_TOKENS
from twinpod.api.rules import Node, Rule, has


def _tiles(self: Node) -> bool:
    """Whether every accelerator is in one engine; a tensorParallel above the accelerators has a rule of its own."""
    engine, accelerators = self.inference, self.accelerators
    if accelerators == 0 or engine.tensorParallel > accelerators:
        return True
    if has(self, "inference.dataParallel"):
        return bool(engine.tensorParallel * engine.dataParallel == accelerators)
    return bool(accelerators % engine.tensorParallel == 0)


def _engines(path: str) -> Rule:
    return Rule(
        path=path,
        field="inference.dataParallel",
        cel=(
            "self.accelerators == 0 || self.inference.tensorParallel > self.accelerators"
            " || (has(self.inference.dataParallel)"
            " ? self.inference.tensorParallel * self.inference.dataParallel == self.accelerators"
            " : self.accelerators % self.inference.tensorParallel == 0)"
        ),
        holds=_tiles,
        message=(
            "times inference.tensorParallel ({self.inference.tensorParallel}) must be the accelerators of a pod"
            " ({self.accelerators}): each belongs to one engine"
        ),
    )


def _fraction(path: str) -> Rule:
    return Rule(
        path=path,
        field="memoryFraction",
        cel="double(self.memoryFraction) > 0.0 && double(self.memoryFraction) < 1.0",
        holds=lambda self: 0.0 < float(self.memoryFraction) < 1.0,
        message='is "{self.memoryFraction}"; must be above 0 and below 1',
    )


def _variables(self: Node) -> list[dict[str, str]]:
    return list(self.env) if has(self, "env") else []


def _environment(path: str) -> tuple[Rule, ...]:
    return (
        Rule(
            path=path,
            field="env",
            cel=f"!has(self.env) || self.env.all(e, !e.name.matches('{OWN_VARIABLES}'))",
            holds=lambda self: not any(re.match(OWN_VARIABLES, one["name"]) for one in _variables(self)),
            message="cannot set TWINPOD_*, CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES or HOME: Twinpod does",
        ),
        Rule(
            path=path,
            field="env",
            cel="",  # the list is a map by name, which the API server keeps by itself
            holds=lambda self: len({one["name"] for one in _variables(self)}) == len(_variables(self)),
            message="names must differ",
        ),
    )


JOB_ENGINES = (
    Rule(
        path="spec",
        field="hybrid.inference.kvTokens",
        cel=(
            "has(self.hybrid.inference.kvTokens) ? self.hybrid.inference.kvTokens > self.rollout.maxTokens"
            f" : self.hybrid.accelerators > 0 || self.rollout.maxTokens < {CPU_KV_TOKENS}"
        ),
        holds=lambda self: (
            self.hybrid.inference.kvTokens > self.rollout.maxTokens
            if has(self, "hybrid.inference.kvTokens")
            else self.hybrid.accelerators > 0 or self.rollout.maxTokens < CPU_KV_TOKENS
        ),
        message=(
            "{self.hybrid.inference.kvTokens} cannot hold one trajectory of rollout.maxTokens"
            " ({self.rollout.maxTokens}) and its prompt"
        ),
    ),
    _engines("spec.hybrid"),
    _fraction("spec.hybrid.inference"),
    *_environment("spec.hybrid.trainer"),
    *_environment("spec.hybrid.inference"),
    Rule(
        path="spec.hybrid",
        field="trainer.layerSpec",
        cel="!has(self.trainer.layerSpec) || self.trainer.layerSpec == 'Local' || self.accelerators > 0",
        holds=lambda self: (
            not has(self, "trainer.layerSpec") or self.trainer.layerSpec == "Local" or self.accelerators > 0
        ),
        message="is {self.trainer.layerSpec}, which runs on GPUs only, and accelerators is 0; leave it out",
    ),
    Rule(
        path="spec.hybrid",
        field="kernelCache.existingClaim",
        cel="!has(self.kernelCache.existingClaim) || self.accelerators > 0",
        holds=lambda self: not has(self, "kernelCache.existingClaim") or self.accelerators > 0,
        message="is for compiled kernels of accelerators, and accelerators is 0; leave it out",
    ),
)
POOL_ENGINES = (
    _engines("spec"),
    _fraction("spec.inference"),
    *_environment("spec.inference"),
    Rule(
        path="spec",
        field="kernelCache.existingClaim",
        cel="!has(self.kernelCache.existingClaim) || self.accelerators > 0",
        holds=lambda self: not has(self, "kernelCache.existingClaim") or self.accelerators > 0,
        message="is for compiled kernels of accelerators, and accelerators is 0; leave it out",
    ),
)

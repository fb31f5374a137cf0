"""The reward that a job names."""

from __future__ import annotations

from twinpod.api.types import RewardSpec
from twinpod.errors import InputError
from twinpod.reward.dataset import DatasetReward, Verifier
from twinpod.reward.entry_point import EntryPointReward
from twinpod.reward.exact import Exact
from twinpod.reward.port import RewardPort
from twinpod.reward.prefix import Prefix

__all__ = ["choose"]


def choose(spec: RewardSpec, verifier: Verifier | None) -> RewardPort:
    """The port for `spec`. `verifier`: the open data set's own, None without one. InputError when they do not fit."""
    match spec.kind:
        case "prefix":
            return Prefix()
        case "exact":
            return Exact()
        case "dataset":
            if verifier is None:
                raise InputError(
                    "kind is dataset, but this data set has no score of its own",
                    where="reward.kind",
                    mend="use prefix, exact or entryPoint, or a data set of reasoning-gym",
                )
            return DatasetReward(verifier)
        case "entryPoint":
            if not spec.target:
                raise InputError("is missing", where="reward.target", mend="name the function: package.module:function")
            return EntryPointReward(spec.target)

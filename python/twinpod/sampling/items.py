"""What a data set is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Dataset", "Item", "Verifier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One problem as its source gives it."""

    prompt: str  # the question alone; the template comes later
    answer: str  # reference answer
    difficulty: float = 0.0  # 0 easy .. 1 hard; 0 when unknown
    where: str = ""  # place in the source, for errors: train.jsonl:12
    key: int = -1  # for the data set's own verifier; -1 without one


class Verifier(Protocol):
    """A data set's own way to score an answer."""

    def score(self, prompt_id: int, text: str) -> float:
        """0 (wrong) to 1 (right). May raise anything: that masks the sample."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """An open data set. Prompt ids: `training[i]` has i, `held_out[j]` has `len(training) + j`; the same on every
    start.
    """

    name: str  # for people
    training: tuple[Item, ...]
    held_out: tuple[Item, ...]  # no prompt of it is in `training`
    duplicates: int  # items of the source that were left out because their prompt came before
    verifier: Verifier | None  # None: the data set has no score of its own

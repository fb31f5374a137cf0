"""What a data set is made of."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

__all__ = ["DIGEST_BYTES", "PATIENCE", "Dataset", "Item", "Parts", "Verifier", "digest_of"]

PATIENCE = 20  # items drawn a wanted one before a generator is said to have no more distinct prompts
DIGEST_BYTES = 16  # of one item: 8 of the prompt, 8 of what it is judged by


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


def digest_of(item: Item) -> bytes:
    """What the books keep of an item: enough to see that its prompt, or its answer, is another one. Pure."""
    prompt = blake2b(item.prompt.encode(), digest_size=DIGEST_BYTES // 2)
    judged = blake2b(f"{item.difficulty!r}/{item.answer}".encode(), digest_size=DIGEST_BYTES // 2)
    return prompt.digest() + judged.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Places in `Dataset.items`, in order; no place is in both."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """An open data set. What is appended to it later changes neither the place nor the part of what was there."""

    name: str  # for people
    items: tuple[Item, ...]  # in the source's order, no prompt twice
    duplicates: int  # items of the source that were left out because their prompt came before
    held_out: int  # how many items are kept apart
    size: int | None  # most training items; None: all there are
    seed: int
    has_score: bool = False  # of its own: the reward `kind: dataset`

    def parts(self, begun_with: int | None = None) -> Parts:
        """Which items are trained on and which are held out.

        Held out are items among the first `begun_with` (all there are when None: a run's first start), chosen by
        their prompts and the seed, whatever their order. What came later is trained on.
        """
        first = len(self.items) if begun_with is None else begun_with

        def rank(place: int) -> bytes:
            return blake2b(f"{self.seed}/{self.items[place].prompt}".encode(), digest_size=16).digest()

        chosen = set(sorted(range(first), key=rank)[: self.held_out])
        training = tuple(place for place in range(len(self.items)) if place not in chosen)
        return Parts(training=training[: self.size], held_out=tuple(sorted(chosen)))

    def keys(self, parts: Parts) -> dict[int, int]:
        """By prompt id (`tokens.divide`), what the data set's own score knows the item by."""
        training = {number: self.items[place].key for number, place in enumerate(parts.training)}
        return training | {-1 - number: self.items[place].key for number, place in enumerate(parts.held_out)}

"""Data sets of reasoning-gym: their entries, and their own score of an answer.

Some of them (ransom_note, word_ladder and others) draw from sets, whose order follows from the process's hash seed. So
entries are made, and answers scored, in processes with one and the same hash seed (`twinpod.child`) and nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Mapping
from itertools import islice
from typing import Any

from twinpod.api.types import DatasetSpec, ReasoningGymSpec
from twinpod.child import Child, Opened
from twinpod.errors import EnvironmentFault, InputError
from twinpod.sampling.items import PATIENCE, Item

__all__ = ["GymVerifier", "gym_items", "open_entries", "open_source", "wanted_of"]

MAKING_S = 3600.0  # for all entries; the slowest data set takes 3 s for one
PART = 64  # entries of one answer: few, where one takes seconds


def gym_items(spec: DatasetSpec, seed: int) -> Generator[Item, None, None]:
    """The entries in order, made by a process of their own as they are asked for. InputError names the setting."""
    gym = spec.reasoning_gym
    assert gym is not None
    child = Child("twinpod.sampling.gym:open_entries", (spec, seed), name=f"reasoning-gym {gym.name}", start_s=MAKING_S)
    try:
        for first in range(0, child.first, PART):
            for key, (question, answer) in enumerate(child.ask((first, PART), MAKING_S), first):
                yield Item(prompt=question, answer=answer, where=f"entry {key}", key=key)
    finally:
        child.close()


def open_entries(argument: tuple[DatasetSpec, int]) -> Opened:
    """In the child: a handler that gives entries from one place on; the first answer is how many there are."""
    source = open_source(*argument)

    def some(request: tuple[int, int]) -> list[tuple[str, str]]:
        first, count = request
        entries = (source[key] for key in islice(range(first, len(source)), count))
        return [(str(entry["question"]), str(entry["answer"])) for entry in entries]

    return some, len(source)


def wanted_of(spec: DatasetSpec) -> int:
    """Distinct prompts asked of the data set, held-out ones included."""
    assert spec.reasoning_gym is not None
    return (spec.size or spec.reasoning_gym.size) + spec.held_out


class GymVerifier:
    """reasoning-gym's own score of an answer. Entries are made again from their index: they are the same every time."""

    def __init__(self, source: Any, keys: Mapping[int, int]) -> None:
        self._source, self._keys = source, keys  # prompt id → index

    def score(self, prompt_id: int, text: str) -> float:
        """0 to 1, by the data set's `score_answer`."""
        return float(self._source.score_answer(text, self._source[self._keys[prompt_id]]))


def open_source(spec: DatasetSpec, seed: int) -> Any:
    """The data set, able to make all that may be asked of it. For a process with the fixed hash seed only."""
    assert spec.reasoning_gym is not None
    return _open(spec.reasoning_gym, seed, wanted_of(spec) * PATIENCE)


def _open(spec: ReasoningGymSpec, seed: int, size: int) -> Any:
    """The data set of reasoning-gym, able to make `size` entries."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise EnvironmentFault(
            f"reasoning-gym is not installed ({error})",
            where="dataset.reasoningGym",
            mend="pip install 'twinpod[master]'",
        ) from error
    if spec.name not in DATASETS:
        near = difflib.get_close_matches(spec.name, DATASETS, 3, 0.5)
        mend = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(DATASETS))}"
        raise InputError(f"reasoning-gym has no data set {spec.name!r}", where="dataset.reasoningGym.name", mend=mend)
    where = "dataset.reasoningGym.settings"
    known = set(DATASETS[spec.name][1].__dataclass_fields__) - {"seed", "size"}
    for name in spec.settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mend = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InputError(f"{spec.name} has no setting {name!r}", where=where, mend=mend)
    try:
        return reasoning_gym.create_dataset(spec.name, seed=seed, size=size, **spec.settings)
    except Exception as error:  # it validates by assert
        raise InputError(
            f"{type(error).__name__}: {error}", where=where, mend=f"see the settings of {spec.name}"
        ) from error

"""Opens the data set that a job names: a Python entry point, a file of JSON lines, or a data set of reasoning-gym.

Promises: the same job and seed give the same prompts in the same order with the same ids; prompts are distinct;
held-out prompts are never in the training part. Everything wrong with the input is one InputError that says where and
what to do.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from twinpod.api.types import DatasetSpec, EntryPointSpec
from twinpod.errors import InputError
from twinpod.sampling.gym import gym_items, wanted_of
from twinpod.sampling.items import PATIENCE, Dataset, Item

__all__ = ["distinct", "open_dataset", "read_json_lines"]

DEFAULT_SIZE = 10_000  # training prompts asked of an entry point when the job names no size


def open_dataset(spec: DatasetSpec, seed: int) -> Dataset:
    """The job's data set. InputError names the field; EnvironmentFault a package that is not installed."""
    if spec.json_lines is not None:
        path = Path(spec.json_lines.path)
        name, (items, duplicates) = path.name, distinct(read_json_lines(path), None)
    elif spec.entry_point is not None:
        name, wanted = spec.entry_point.target, (spec.size or DEFAULT_SIZE) + spec.held_out
        items, duplicates = distinct(_from_entry_point(spec.entry_point, seed, wanted), wanted)
    else:
        assert spec.reasoning_gym is not None  # the schema demands exactly one
        with closing(gym_items(spec, seed)) as entries:
            name, (items, duplicates) = f"reasoning-gym {spec.reasoning_gym.name}", distinct(entries, wanted_of(spec))
    needed = spec.held_out + (spec.size or 1)
    if len(items) < needed:
        asked = f"{spec.size} to train on" if spec.size else "at least one to train on"
        raise InputError(
            f"{name} has {len(items)} distinct prompts; {spec.held_out} held out and {asked} are wanted",
            where="dataset",
            mend="lower dataset.size or dataset.heldOut, or widen the data set",
        )
    return Dataset(
        name=name,
        items=tuple(items),
        duplicates=duplicates,
        held_out=spec.held_out,
        size=spec.size,
        seed=seed,
        has_score=spec.reasoning_gym is not None,
    )


def distinct(items: Iterable[Item], wanted: int | None) -> tuple[list[Item], int]:
    """The first `wanted` items (all when None) with prompts of their own, and how many were left out.

    A generator is given up after 20 items for each wanted one. InputError when one prompt comes with two answers.
    """
    kept: dict[str, Item] = {}
    duplicates = 0
    whole = _with_whole_characters(items)
    for item in whole if wanted is None else islice(whole, wanted * PATIENCE):
        before = kept.setdefault(item.prompt, item)
        if before is not item:
            duplicates += 1
            if before.answer != item.answer and item.key < 0:  # a verifier of its own may accept several
                raise InputError(
                    f"the prompt {_short(item.prompt)} has two answers, {_short(before.answer)} at {before.where} and"
                    f" {_short(item.answer)}",
                    where=item.where,
                    mend="leave one of them out",
                )
        if len(kept) == wanted:
            break
    return list(kept.values()), duplicates


def read_json_lines(path: Path) -> Iterator[Item]:
    """The items of a file with one object a line: prompt, answer, difficulty (optional). Blank lines are skipped."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            mend="correct dataset.jsonLines.path, or put the file there",
        ) from error
    with file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"is not UTF-8: {error.reason} at byte {error.start + 1}", where=where, mend="convert the file"
                ) from error
            if text.strip():
                yield _json_item(text, where)


def _json_item(line: str, where: str) -> Item:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg} at column {error.colno}", where=where) from error
    except RecursionError as error:
        raise InputError(
            "is nested too deeply", where=where, mend='write {"prompt": "...", "answer": "..."}'
        ) from error
    except ValueError as error:  # a number with more digits than Python reads
        raise InputError(f"cannot be read: {error}", where=where) from error
    if not isinstance(value, dict):
        raise InputError("is not an object", where=where, mend='write {"prompt": "...", "answer": "..."}')
    if unknown := sorted(set(value) - {"prompt", "answer", "difficulty"}):
        raise InputError(
            f"unknown {_printable(', '.join(unknown))}", where=where, mend="known are prompt, answer, difficulty"
        )
    for name in ("prompt", "answer"):
        if not isinstance(value.get(name), str) or not value[name]:
            raise InputError(f"{name} is {value.get(name)!r}", where=where, mend="give a string that is not empty")
    difficulty = value.get("difficulty", 0.0)
    if isinstance(difficulty, bool) or not isinstance(difficulty, (int, float)) or not 0 <= difficulty <= 1:
        raise InputError(f"difficulty is {difficulty!r}", where=where, mend="give a number from 0 to 1")
    return Item(prompt=value["prompt"], answer=value["answer"], difficulty=float(difficulty), where=where)


def _with_whole_characters(items: Iterable[Item]) -> Iterator[Item]:
    """The items; InputError names the first with half a character: no tokenizer, file or message can hold it."""
    for item in items:
        for name, text in (("prompt", item.prompt), ("answer", item.answer)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{name} has half a character ({_printable(text[error.start])}, a lone surrogate) at character"
                    f" {error.start + 1}",
                    where=item.where or "dataset",
                    mend="write the whole character, or take the half out",
                ) from error
        yield item


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def load_target(target: str, where: str) -> Callable[..., Any]:
    """The function `pkg.mod:func`; InputError says which part of the name is wrong."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{target!r}: {error}", where=where, mend="is its package in the master's image, and spelt so?"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [key for key in vars(module) if not key.startswith("_")], 1)
        mend = f"did you mean {module_name}:{near[0]}?" if near else f"define {name} in {module_name}"
        raise InputError(f"{module_name} has no function {name!r}", where=where, mend=mend)
    return function  # type: ignore[no-any-return]


def _from_entry_point(spec: EntryPointSpec, seed: int, wanted: int) -> Iterator[Item]:
    where = "dataset.entryPoint.target"
    function = load_target(spec.target, where)
    try:
        items = iter(function(dict(spec.settings), seed, wanted))
    except InputError:
        raise
    except Exception as error:  # code of the user's: whatever it raises is about the input
        raise InputError(f"{spec.target} failed: {type(error).__name__}: {error}", where=where) from error
    for number in range(wanted * PATIENCE):
        place = f"item {number} of {spec.target}"
        try:
            item = next(items, None)
        except Exception as error:
            raise InputError(f"{type(error).__name__}: {error}", where=place) from error
        if item is None:
            return
        if not isinstance(item, Item):
            raise InputError(f"is {type(item).__name__}", where=place, mend="yield twinpod.sampling.items.Item")
        if {type(item.prompt), type(item.answer)} != {str}:  # the user's code; nobody checks its types
            raise InputError("its prompt or its answer is no string", where=place)
        yield (
            item
            if item.where
            else Item(prompt=item.prompt, answer=item.answer, difficulty=item.difficulty, where=place, key=item.key)
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")

"""A resumed run and its data set: more lines are welcome, other lines are refused by their place."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from twinpod.api.types import DatasetSpec
from twinpod.errors import InputError
from twinpod.master import books_data
from twinpod.master.books import Books, Identity
from twinpod.sampling.datasets import open_dataset
from twinpod.sampling.items import Dataset, Item
from twinpod.sampling.uniform import Growth, Uniform
from twinpod.testing.small_run import prompts

HELD_OUT = 4


def pair(number: int, answer: str = "a") -> dict[str, object]:
    return {"prompt": f"p{number}", "answer": answer}


def start(folder: Path, lines: Sequence[dict[str, object]], draws: int = 0, size: int | None = None) -> Uniform:
    """One start of a run on a file of these lines, which begins so many groups."""
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"jsonLines": {"path": str(folder / "train.jsonl")}, "heldOut": HELD_OUT, "size": size}
    dataset = open_dataset(DatasetSpec.model_validate(fields), 7)
    books = Books.open(folder / "state", Identity(job="j", fields={}))
    try:
        policy = books_data.uniform(dataset, books_data.take(books, dataset))
        books.begin_groups(
            [(one, 9) for one in prompts(draws, first=1000 * books_data.known(books.connection)[-1].first)], 2, 1
        )
    finally:
        books.close()
    return policy


def begun(size: int, *grown: tuple[int, int]) -> Uniform:
    return Uniform(size=size, seed=7, grown=tuple(Growth(taken=taken, size=size) for taken, size in grown))


def test_a_run_goes_on_with_the_same_lines_and_with_more_at_their_end(tmp_path: Path) -> None:
    lines = [pair(n) for n in range(30)]
    assert start(tmp_path, lines, draws=5) == begun(26)
    assert start(tmp_path, lines) == begun(26)
    more = [*lines, *(pair(n) for n in range(30, 50))]
    for _ in range(2):
        assert start(tmp_path, more) == begun(26, (5, 46))
    assert start(tmp_path, [*more, pair(50)]) == begun(26, (5, 46), (5, 47))


def test_lines_beyond_the_wanted_size_are_no_growth(tmp_path: Path) -> None:
    start(tmp_path, [pair(n) for n in range(10)], size=6)
    assert start(tmp_path, [pair(n) for n in range(20)], size=6) == begun(6)


CHANGES = [
    (lambda lines: [*lines[:6], pair(99), *lines[7:]], r"train.jsonl:7: has another prompt .*\(1 of 10 items differ\)"),
    (lambda lines: [*lines[:6], pair(6, "b"), *lines[7:]], r"train.jsonl:7: has another answer or difficulty than"),
    (lambda lines: [*lines[:6], {**pair(6), "difficulty": 0.5}, *lines[7:]], r"train.jsonl:7: has another answer"),
    (lambda lines: [pair(99), *lines], r"train.jsonl:1: has another prompt .*\(10 of 10 items differ\)"),
    (lambda lines: lines[:8], r"train.jsonl: has 8 distinct prompts, .* begun with 10: those after train.jsonl:8 are"),
    (lambda lines: [*lines[:8], pair(0), pair(1)], r"train.jsonl: has 8 distinct prompts, the run has begun with 10"),
]


@pytest.mark.parametrize(("change", "line"), CHANGES)
def test_edited_or_missing_lines_are_refused_by_their_place(tmp_path: Path, change: object, line: str) -> None:
    lines = [pair(n) for n in range(10)]
    start(tmp_path, lines)
    with pytest.raises(InputError, match=line) as caught:
        start(tmp_path, change(lines))  # type: ignore[operator]
    assert "lines may be added at the end only" in str(caught.value)
    start(tmp_path, lines)


def test_a_line_that_was_appended_may_not_change_either(tmp_path: Path) -> None:
    start(tmp_path, [pair(n) for n in range(10)])
    start(tmp_path, [pair(n) for n in range(12)])
    with pytest.raises(InputError, match=r"train.jsonl:12: has another prompt"):
        start(tmp_path, [*(pair(n) for n in range(11)), pair(99)])
    with pytest.raises(InputError, match=r"has 10 distinct prompts, the run has begun with 12"):
        start(tmp_path, [pair(n) for n in range(10)])


def test_a_hundred_thousand_prompts_cost_next_to_nothing(tmp_path: Path) -> None:
    items = tuple(Item(prompt=f"what is {n}?" * 10, answer=str(n)) for n in range(100_000))
    dataset = Dataset(name="d", items=items, duplicates=0, held_out=0, size=None, seed=0)
    books = Books.open(tmp_path, Identity(job="j", fields={}))
    began = time.process_time()
    for _ in range(2):
        books_data.take(books, dataset)
    assert time.process_time() - began < 5.0  # 0.6 s when nothing else runs
    assert (tmp_path / "books.sqlite").stat().st_size < 4_000_000
    books.close()

"""Opening data sets."""

from __future__ import annotations

import json

import pytest

from twinpod.api.types import DatasetSpec
from twinpod.errors import InputError
from twinpod.sampling.datasets import open_dataset
from twinpod.sampling.items import Dataset, Item

REVERSE = "twinpod.sampling.letters:reverse"


def training(dataset: Dataset) -> list[Item]:
    return [dataset.items[place] for place in dataset.parts().training]


def held_out(dataset: Dataset, begun_with: int | None = None) -> list[Item]:
    return [dataset.items[place] for place in dataset.parts(begun_with).held_out]


def spec(**fields: object) -> DatasetSpec:
    return DatasetSpec.model_validate(fields)


def lines(path, *objects: object) -> dict[str, str]:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in objects))
    return {"path": str(path)}


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"p{number}", "answer": f"a{number}"}


SOURCES = [
    {"entryPoint": {"target": REVERSE, "settings": {"letters": 4}}, "size": 300, "heldOut": 40},
    {
        "reasoningGym": {"name": "spell_backward", "settings": {"min_word_len": 3, "max_word_len": 3}},
        "size": 300,
        "heldOut": 40,
    },
    {"reasoningGym": {"name": "chain_sum"}, "size": 300, "heldOut": 40},
]


@pytest.mark.parametrize("fields", SOURCES, ids=["entry point", "spell_backward", "chain_sum"])
def test_the_same_job_gives_the_same_prompts_and_none_is_held_out_and_trained_on(fields):
    first, again = (open_dataset(spec(**fields), 5) for _ in range(2))
    assert (training(first), held_out(first)) == (training(again), held_out(again))
    assert (len(training(first)), len(held_out(first))) == (300, 40)
    assert len({item.prompt for item in (*training(first), *held_out(first))}) == 340
    assert training(open_dataset(spec(**fields), 6)) != training(first)


def test_json_lines_are_read_in_order_and_doubles_left_out(tmp_path):
    source = lines(tmp_path / "train.jsonl", pair(0), "", {**pair(1), "difficulty": 0.5}, pair(0), pair(2))
    dataset = open_dataset(spec(jsonLines=source, heldOut=0), 0)
    assert [(i.prompt, i.answer, i.difficulty, i.where) for i in training(dataset)] == [
        ("p0", "a0", 0.0, "train.jsonl:1"),
        ("p1", "a1", 0.5, "train.jsonl:3"),
        ("p2", "a2", 0.0, "train.jsonl:5"),
    ]
    assert (dataset.duplicates, dataset.has_score) == (1, False)


def test_which_lines_are_held_out_does_not_depend_on_their_order(tmp_path):
    forth = open_dataset(spec(jsonLines=lines(tmp_path / "a", *map(pair, range(50))), heldOut=10), 0)
    back = open_dataset(spec(jsonLines=lines(tmp_path / "b", *map(pair, reversed(range(50)))), heldOut=10), 0)
    assert {item.prompt for item in held_out(forth)} == {item.prompt for item in held_out(back)}


BAD_LINES = [
    (pair(0), "{", r"bad.jsonl:2: is not JSON: .* at column 2"),
    (pair(0), "[1]", r"bad.jsonl:2: is not an object; write"),
    (pair(0), "[" * 100_000, r"bad.jsonl:2: is nested too deeply; write"),
    (
        pair(0),
        '{"prompt": "x", "answer": "y", "difficulty": ' + "1" * 5000 + "}",
        r"bad.jsonl:2: cannot be read: .*digits",
    ),
    (
        pair(0),
        r'{"prompt":"ab\ud83d","answer":"ba"}',
        r"bad.jsonl:2: prompt has half a character \(\\ud83d, .* at character 3",
    ),
    (pair(0), r'{"prompt":"ab","answer":"\ud83dba"}', r"bad.jsonl:2: answer has half a character .* at character 1"),
    (pair(0), r'{"prompt":"ab","answer":"ba","x\ud83d":1}', r"bad.jsonl:2: unknown x\\ud83d; known are"),
    (pair(0), {"prompt": "x"}, r"bad.jsonl:2: answer is None"),
    (pair(0), {"prompt": "", "answer": "x"}, r"bad.jsonl:2: prompt is ''"),
    (pair(0), {**pair(1), "solution": 1}, r"bad.jsonl:2: unknown solution; known are prompt, answer, difficulty"),
    (pair(0), {**pair(1), "difficulty": 2}, r"bad.jsonl:2: difficulty is 2; give a number from 0 to 1"),
    (pair(0), {**pair(0), "answer": "b"}, r"bad.jsonl:2: the prompt 'p0' has two answers, 'a0' at bad.jsonl:1 and 'b'"),
]


def test_a_line_that_is_not_utf_8_is_named_by_its_number(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(pair(0)).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match=r"bad.jsonl:2: is not UTF-8: invalid start byte at byte 13; convert"):
        open_dataset(spec(jsonLines={"path": str(tmp_path / "bad.jsonl")}, heldOut=0), 0)


def test_a_whole_character_beyond_the_basic_plane_and_a_mark_of_byte_order_are_welcome(tmp_path):
    text = "\ufeff" + r'{"prompt":"ab\ud83d\ude00","answer":"ba"}'
    (tmp_path / "good.jsonl").write_text(text)
    dataset = open_dataset(spec(jsonLines={"path": str(tmp_path / "good.jsonl")}, heldOut=0), 0)
    assert dataset.items[0].prompt == "ab\N{GRINNING FACE}"


def test_what_is_appended_changes_neither_who_is_held_out_nor_any_place(tmp_path):
    before = open_dataset(spec(jsonLines=lines(tmp_path / "a", *map(pair, range(50))), heldOut=10), 0)
    after = open_dataset(spec(jsonLines=lines(tmp_path / "a", *map(pair, range(90))), heldOut=10), 0)
    assert held_out(after) != held_out(before), "anew, others would be held out"
    assert held_out(after, 50) == held_out(before)
    assert after.parts(50).training == (*before.parts().training, *range(50, 90))


@pytest.mark.parametrize(("good", "bad", "line"), BAD_LINES)
def test_a_bad_line_is_named_by_its_number(tmp_path, good, bad, line):
    with pytest.raises(InputError, match=line):
        open_dataset(spec(jsonLines=lines(tmp_path / "bad.jsonl", good, bad), heldOut=0), 0)


def entry(target: str, **settings: object) -> dict[str, object]:
    return {"entryPoint": {"target": target, "settings": settings}, "heldOut": 0, "size": 5}


def gym(name: str, **settings: object) -> dict[str, object]:
    return {"reasoningGym": {"name": name, "settings": settings}, "heldOut": 0, "size": 5}


REFUSED = [
    (
        {"jsonLines": {"path": "/no/such.jsonl"}},
        r"/no/such.jsonl: cannot be read: No such file.*dataset.jsonLines.path",
    ),
    (entry("no_such_package.x:f"), r"dataset.entryPoint.target: .*No module named 'no_such_package'"),
    (
        entry("twinpod.sampling.letters:revers"),
        r"has no function 'revers'; did you mean twinpod.sampling.letters:reverse\?",
    ),
    (entry(REVERSE, letters=1, alphabet=2), r"letters:reverse has 2 distinct prompts; 0 held out and 5 to train on"),
    (entry("json:loads"), r"dataset.entryPoint.target: json:loads failed: TypeError"),
    (entry("itertools:chain"), r"dataset.entryPoint.target: .*failed|item 0 of"),
    (gym("spell_backwards"), r"no data set 'spell_backwards'; did you mean spell_backward"),
    (gym("qqqqqq"), r"no data set 'qqqqqq'; known are .*spell_backward"),
    (gym("spell_backward", min_word_length=3), r"no setting 'min_word_length'; did you mean min_word_len\?"),
    (
        gym("spell_backward", min_word_len=5, max_word_len=4),
        r"dataset.reasoningGym.settings: AssertionError: max_word_len",
    ),
    (
        {**gym("spell_backward", min_word_len=3, max_word_len=3), "size": 2000},
        r"has 1370 distinct prompts; 0 held out and 2000",
    ),
]


@pytest.mark.parametrize(("fields", "line"), REFUSED)
def test_a_data_set_that_cannot_be_is_refused_in_one_line(fields, line):
    with pytest.raises(InputError, match=line) as caught:
        open_dataset(spec(**fields), 0)
    assert "\n" not in str(caught.value)


def test_without_a_size_an_entry_point_gives_all_it_has():
    source = {"target": REVERSE, "settings": {"letters": 2, "alphabet": 4}}
    dataset = open_dataset(spec(entryPoint=source, heldOut=4), 0)
    assert (len(training(dataset)), len(held_out(dataset))) == (12, 4)


def test_too_few_prompts_for_the_held_out_part_is_said_with_numbers(tmp_path):
    source = lines(tmp_path / "few.jsonl", *map(pair, range(10)))
    with pytest.raises(
        InputError, match=r"few.jsonl has 10 distinct prompts; 10 held out and at least one to train on"
    ):
        open_dataset(spec(jsonLines=source, heldOut=10), 0)

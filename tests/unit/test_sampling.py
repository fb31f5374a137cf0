"""The order in which prompts come."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.errors import InputError
from twinpod.sampling.letters import reverse
from twinpod.sampling.policy import Draw, PromptHistory, SamplingPolicy
from twinpod.sampling.uniform import Growth, Uniform, at, order


def unread() -> tuple[PromptHistory, ...]:
    raise AssertionError("uniform sampling needs no history")


def test_every_prompt_comes_once_a_pass_and_passes_differ():
    draws = Uniform(size=50, seed=3).draw(0, 150, unread)
    assert Counter((draw.epoch, draw.prompt_id) for draw in draws) == Counter(
        (e, p) for e in range(3) for p in range(50)
    )
    first, second = ([d.prompt_id for d in draws if d.epoch == e] for e in (0, 1))
    assert first != second


@pytest.mark.parametrize("steps", [[1] * 23, [5, 7, 11], [23]])
def test_where_it_goes_on_depends_only_on_how_many_were_taken(steps):
    policy: SamplingPolicy = Uniform(size=10, seed=0)
    taken, draws = 0, []
    for count in steps:
        draws.extend(policy.draw(taken, count, unread))
        taken += count
    assert tuple(draws) == policy.draw(0, 23, unread)


def test_the_order_is_fixed_for_ever():
    assert order(8, 0, 0) == (0, 3, 7, 4, 1, 5, 2, 6)  # a resumed run depends on it
    assert order(8, 0, 0) != order(8, 1, 0)
    assert at(8, 8, 0) == Draw(epoch=1, prompt_id=order(8, 0, 1)[0])


@given(
    first=st.integers(1, 12),
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=4),
    after=st.integers(0, 60),
)
def test_what_is_added_comes_once_in_the_pass_under_way_and_once_in_every_later_one(first, steps, after):
    size, grown, begun = first, [], []

    def draw(taken, count):
        return Uniform(size=first, seed=1, grown=tuple(grown)).draw(taken, count, unread)

    for draws, more in [*steps, (after, 0)]:
        begun += draw(len(begun), draws)
        if more:
            size += more
            grown.append(Growth(taken=len(begun), size=size))
    assert begun == list(draw(0, len(begun))), "nothing that was drawn changes"
    pairs = [(draw.epoch, draw.prompt_id) for draw in begun]
    assert len(set(pairs)) == len(pairs)
    assert [epoch for epoch, _ in pairs] == sorted(epoch for epoch, _ in pairs)
    passes = Counter(epoch for epoch, _ in pairs)
    for epoch in range(max(passes, default=0)):  # all but the last one are over
        assert sorted(prompt for number, prompt in pairs if number == epoch) == list(range(passes[epoch]))
    if pairs and passes[pairs[-1][0]] == size:
        assert {prompt for number, prompt in pairs if number == pairs[-1][0]} == set(range(size))


def test_a_place_far_into_a_run_costs_no_walk_through_its_passes():
    assert at(10**12, 3, 0, (Growth(taken=10**11 + 1, size=4),)).epoch > 10**11


def test_reverse_makes_distinct_strings_and_the_same_ones_again():
    items = list(reverse({}, 7, 2000))
    assert items == list(reverse({"letters": 5, "alphabet": 10, "end": ""}, 7, 2000))
    assert items != list(reverse({}, 8, 2000))
    assert len({item.prompt for item in items}) == 2000
    assert all(item.prompt == item.answer[::-1] and set(item.answer) <= set("abcdefghij") for item in items)


def test_reverse_can_use_up_all_strings_there_are():
    items = list(reverse({"letters": 2, "alphabet": 3, "end": "="}, 0, 100))
    assert sorted(item.prompt for item in items) == sorted(a + b + "=" for a in "abc" for b in "abc")


@pytest.mark.parametrize(
    ("settings", "size", "line"),
    [
        ({"letter": 2}, 1, "unknown letter; known are letters, alphabet, end"),
        ({"letters": 0}, 1, r"letters: is 0; give a whole number"),
        ({"letters": True}, 1, r"letters: is True"),
        ({"alphabet": 27}, 1, r"alphabet: is 27; give a whole number from 1 to 26"),
        ({"end": 5}, 1, r"end: is 5; give a string"),
    ],
)
def test_reverse_refuses_what_cannot_be(settings, size, line):
    with pytest.raises(InputError, match=line):
        list(reverse(settings, 0, size))

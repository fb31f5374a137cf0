"""The arena promises: parts do not overlap, a digest tells one changed byte, and a full memory is an error, not a
crash.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpod.arena import ALIGNMENT, PAGE, Arena, plan_layout
from twinpod.errors import InputError, IntegrityError
from twinpod.records.weights import ShardLayout, TensorPart


def whole(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorPart:
    return TensorPart(name=name, dtype=dtype, shape=shape, full_shape=shape, axis=None, start=0, offset=0, nbytes=0)


def two_tensors() -> ShardLayout:
    return plan_layout("hybrid-0/rank-0", [whole("a", (3, 5)), whole("b", (7,), "BF16")])


@given(
    st.lists(
        st.tuples(st.sampled_from(["F32", "BF16", "F16"]), st.lists(st.integers(1, 9), min_size=1, max_size=3)),
        max_size=12,
    )
)
def test_parts_are_aligned_and_never_overlap(shapes: list[tuple[str, list[int]]]) -> None:
    layout = plan_layout("o", [whole(f"t{i}", tuple(shape), dtype) for i, (dtype, shape) in enumerate(shapes)])
    end = 0
    for part in layout.parts:
        assert part.offset % ALIGNMENT == 0
        assert part.offset >= end
        end = part.offset + part.nbytes
    assert end <= layout.slot_bytes
    assert layout.slot_bytes % PAGE == 0


def test_a_dtype_that_cannot_be_carried_is_named() -> None:
    with pytest.raises(InputError, match="'I8' is not carried"):
        plan_layout("o", [whole("a", (1,), "I8")])


def test_what_the_owner_writes_another_process_reads_without_a_copy(tmp_path: Path) -> None:
    with (
        Arena.create(tmp_path / "x.arena", two_tensors()) as owner,
        Arena.open(tmp_path / "x.arena", two_tensors()) as reader,
    ):
        part = owner.layout.parts[0]
        view = reader.part(1, part)
        owner.part(1, part)[:] = np.arange(15, dtype=np.float32).reshape(3, 5)
        assert view[2, 4] == 14
        assert not view.flags.writeable
        del view


def test_the_slots_are_apart(tmp_path: Path) -> None:
    with Arena.create(tmp_path / "x.arena", two_tensors()) as arena:
        before = arena.digest(0)
        arena.part(1, arena.layout.parts[0])[:] = 1
        assert arena.digest(0) == before
        assert arena.digest(1) != before


@pytest.mark.parametrize("threads", [1, 3])
def test_one_changed_byte_changes_the_digest_and_gaps_do_not(tmp_path: Path, threads: int) -> None:
    with Arena.create(tmp_path / "x.arena", two_tensors()) as arena:
        clean = arena.digest(0, threads)
        arena.slot(0)[100] = 1  # between the 60 bytes of `a` and the 256-byte boundary
        assert arena.digest(0, threads) == clean
        arena.slot(0)[59] = 1
        assert arena.digest(0, threads) != clean


def test_the_digest_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    layout = plan_layout("o", [whole("big", (3, 1 << 20)), whole("small", (5,))])
    with Arena.create(tmp_path / "x.arena", layout, slots=1) as arena:
        arena.slot(0)[:] = np.random.default_rng(0).integers(0, 256, layout.slot_bytes, dtype=np.uint8)
        assert arena.digest(0, 1) == arena.digest(0, 4)


def test_too_small_a_memory_is_one_clear_line_and_leaves_no_file(tmp_path: Path) -> None:
    layout = plan_layout("o", [whole("huge", (1 << 30, 1 << 20))])
    with pytest.raises(InputError, match=r"shared memory too small: the arena needs .* MB.*sharedMemory"):
        Arena.create(tmp_path / "x.arena", layout)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    Arena.create(tmp_path / "x.arena", two_tensors()).close()
    with (tmp_path / "x.arena").open("r+b") as file:
        file.truncate(PAGE)
    with pytest.raises(IntegrityError, match="its layout says"):
        Arena.open(tmp_path / "x.arena", two_tensors())


def test_an_arena_made_again_at_its_old_size_is_the_same_memory(tmp_path: Path) -> None:
    with Arena.create(tmp_path / "x.arena", two_tensors()) as first:
        first.slot(0)[:] = 7
        with Arena.create(tmp_path / "x.arena", two_tensors()) as again:
            assert again.digest(0) == first.digest(0)
            again.slot(1)[5] = 9
            assert first.slot(1)[5] == 9
        with Arena.create(tmp_path / "x.arena", two_tensors(), slots=3) as larger:
            assert larger.slot(0)[0] == 0
            assert first.slot(0)[0] == 7

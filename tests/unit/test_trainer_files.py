"""Which files an export has, and who reads which part of the first weights."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from twinpod.trainer.export import index_of, plan_files
from twinpod.trainer.weights import deal_parts

Shapes = dict[str, tuple[int, ...]]
shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12).map(
    lambda found: {f"t{i}": shape for i, shape in enumerate(found)}
)


@given(shapes, st.integers(1, 400))
def test_files_hold_every_tensor_once_and_keep_the_limit(tensors: Shapes, limit: int) -> None:
    files = plan_files(tensors, "BF16", 2, limit)
    assert [name for file in files for name in file.starts] == list(tensors)
    for file in files:
        sizes = [2 * math.prod(tensors[name]) for name in file.starts]
        assert sum(sizes) <= limit or len(sizes) == 1
        assert file.size == len(file.header) + sum(sizes)
        ends = [start + size for start, size in zip(file.starts.values(), sizes, strict=True)]
        assert [len(file.header), *ends] == [*file.starts.values(), file.size]
        table = json.loads(file.header[8:])
        assert {name: tuple(entry["shape"]) for name, entry in table.items() if name != "__metadata__"} == {
            name: tensors[name] for name in file.starts
        }


def test_one_file_keeps_its_plain_name_and_several_have_hugging_faces() -> None:
    tensors = {"a": (3,), "b": (2, 2), "c": (1,)}
    assert [file.name for file in plan_files(tensors, "F32", 4, 32)] == ["model.safetensors"]
    files = plan_files(tensors, "F32", 4, 28)
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert index_of(files) == {
        "metadata": {"total_size": 32},
        "weight_map": {"a": files[0].name, "b": files[0].name, "c": files[1].name},
    }


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 8))
def test_readers_share_the_bytes(sizes: list[int], ranks: int) -> None:
    readers = deal_parts(sizes, ranks)
    load = [sum(size for size, reader in zip(sizes, readers, strict=True) if reader == rank) for rank in range(ranks)]
    assert sum(load) == sum(sizes)
    assert max(load) - min(load) <= max(sizes, default=0)

"""Composing a version, its manifest, its proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.checkpoint.manifest import manifest_path, read_manifest, write_manifest
from twinpod.checkpoint.verify import verify_version
from twinpod.checkpoint.versions import check_version, compose, compose_copies, pod_of, tiling_fault
from twinpod.errors import EnvironmentFault, IntegrityError, ProtocolError
from twinpod.master.copies import copies_of
from twinpod.records.weights import ShardRef, TensorPart, WeightVersion
from twinpod.testing.weights import order_of, small_version, spoil


def part(shape: tuple[int, ...], axis: int | None = None, start: int = 0, **more: object) -> TensorPart:
    full = (6, 4)
    base = TensorPart(name="w", dtype="F32", shape=shape, full_shape=full, axis=axis, start=start, offset=0, nbytes=0)
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ([part((6, 4))], ""),
        ([part((2, 4), 0), part((4, 4), 0, 2)], ""),
        ([part((4, 4), 0, 2), part((2, 4), 0)], ""),
        ([part((6, 1), 1), part((6, 3), 1, 1)], ""),
        ([part((6, 4)), part((6, 4))], "is published whole by 2 owners"),
        ([part((3, 4))], "is said to be whole but has [3, 4] of [6, 4]"),
        ([part((2, 4), 0)], "lacks rows 2 to 5 of axis 0"),
        ([part((2, 4), 0, 4)], "lacks rows 0 to 3 of axis 0"),
        ([part((4, 4), 0), part((4, 4), 0, 2)], "has rows 2 to 3 of axis 0 twice"),
        ([part((2, 4), 0), part((6, 2), 1)], "is cut along different axes: ['0', '1']"),
        ([part((6, 4)), part((2, 4), 0)], "is cut along different axes: ['0', 'None']"),
        ([part((2, 3), 0), part((4, 4), 0, 2)], "has a part of shape [2, 3] that does not fit [6, 4] along axis 0"),
        ([part((6,), 0)], "has a part of shape [6] that does not fit [6, 4] along axis 0"),
        ([part((6, 4), 2)], "has no axis 2"),
        ([part((2, 4), 0), part((4, 4), 0, 2, dtype="BF16")], "is published with different shapes or dtypes"),
    ],
)
def test_parts_must_tile_a_tensor_exactly_once(pieces: list[TensorPart], fault: str) -> None:
    found = tiling_fault(pieces)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_a_version_is_the_same_whatever_the_order_of_its_shards(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    assert compose(3, 1, 3, reversed(version.shards)) == version
    check_version(version)


def test_a_version_without_one_of_its_shards_names_the_tensor(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    with pytest.raises(ProtocolError, match=r"version 3: cut\.weight lacks rows 4 to 7 of axis 0"):
        compose(3, 1, 3, version.shards[:1])


def test_two_shards_of_one_owner_are_refused(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    with pytest.raises(ProtocolError, match="hybrid-0/rank-0 published more than one shard"):
        compose(3, 1, 3, [*version.shards, version.shards[0]])


def copy_in(version: WeightVersion, pod: str, digest: str = "") -> list[ShardRef]:
    """The shards of a version as another pod would publish them."""
    return [
        replace(shard, owner=f"{pod}/rank-{rank}", address=f"{pod}:7401", digest=digest or shard.digest)
        for rank, shard in enumerate(order_of(version).weights.shards)
    ]


def test_each_pod_has_a_complete_copy_of_its_own(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    pods = ["j-hybrid-10", "j-hybrid-9", "j-hybrid-0"]
    copies = compose_copies(3, 1, 3, [shard for pod in pods for shard in copy_in(version, pod)])
    assert list(copies) == ["j-hybrid-0", "j-hybrid-9", "j-hybrid-10"]
    assert {copy.digest for copy in copies.values()} == {version.digest}
    assert [shard.address for shard in copies["j-hybrid-9"].shards] == ["j-hybrid-9:7401"] * 2


def test_copies_that_differ_name_both_pods(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    shards = [*copy_in(version, "j-hybrid-0"), *copy_in(version, "j-hybrid-1", "xxh3:" + "0" * 16)]
    with pytest.raises(IntegrityError, match=r"version 3: j-hybrid-0 has the weights xxh3:\w+, j-hybrid-1 has xxh3:"):
        compose_copies(3, 1, 3, shards)


def test_a_pod_whose_copy_is_not_complete_is_refused(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    shards = [*copy_in(version, "j-hybrid-0"), *copy_in(version, "j-hybrid-1")[:1]]
    with pytest.raises(IntegrityError, match=r"j-hybrid-1 has xxh3:"):
        compose_copies(3, 1, 3, shards)
    with pytest.raises(ProtocolError, match="j-hybrid-0/rank-0 published more than one shard"):
        compose_copies(3, 1, 3, [*shards, shards[0]])


def test_an_engine_without_a_trainer_is_told_of_every_copy_and_of_its_peers(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    copies = copies_of(3, 1, 3, [shard for pod in ("j-hybrid-0", "j-hybrid-1") for shard in copy_in(version, pod)])
    own = copies.serving("j-hybrid-1")
    assert ({pod_of(shard.owner) for shard in own.weights.shards}, own.sources) == ({"j-hybrid-1"}, ())
    helper = copies.serving("p-rollout-0", ["p-rollout-1:7402"])
    assert {source.addresses for source in helper.sources} == {
        ("j-hybrid-0:7401", "j-hybrid-1:7401", "p-rollout-1:7402")
    }
    assert {pod_of(copies.serving(f"p-rollout-{n}").weights.shards[0].owner) for n in range(16)} == set(copies.by_pod)
    assert copies.owners == ("j-hybrid-0:7401", "j-hybrid-1:7401")


def test_a_version_without_shards_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no shard"):
        compose(1, 1, 1, [])


def test_a_version_whose_digest_is_not_its_shards_is_refused(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    with pytest.raises(ProtocolError, match="its shards combine to"):
        check_version(replace(version, digest="xxh3:0000000000000000"))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    digest = write_manifest(tmp_path / "new", version)
    assert read_manifest(manifest_path(tmp_path / "new", 3), digest) == version


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    digest = write_manifest(tmp_path, small_version(tmp_path, 3))
    path = manifest_path(tmp_path, 3)
    path.write_text(path.read_text().replace("rank-1", "rank-9"))
    with pytest.raises(IntegrityError, match="has digest xxh3:"):
        read_manifest(path, digest)


def test_manifests_of_overwritten_slots_are_removed(tmp_path: Path) -> None:
    for number in range(1, 5):
        write_manifest(tmp_path, small_version(tmp_path, number))
    assert sorted(path.name for path in tmp_path.glob("version-*")) == ["version-3.json", "version-4.json"]


def test_a_manifest_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    version = small_version(tmp_path, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="the manifest cannot be written"):
        write_manifest(tmp_path / "file", version)


@pytest.mark.parametrize("threads", [1, 3])
def test_true_shards_are_proved(tmp_path: Path, threads: int) -> None:
    version = small_version(tmp_path, 3)
    assert verify_version(version, threads=threads).nbytes == 8 * 16 * 4 + 16 * 4


def test_the_other_slot_proves_nothing(tmp_path: Path) -> None:
    small_version(tmp_path, 2)
    version = small_version(tmp_path, 3)
    verify_version(version)
    small_version(tmp_path, 5)  # takes the slot of version 3
    with pytest.raises(IntegrityError, match="version 3, shard hybrid-0/rank-0"):
        verify_version(version)


def test_a_lying_shard_is_named_with_both_digests(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    spoil(version, 1)
    with pytest.raises(IntegrityError) as caught:
        verify_version(version)
    assert caught.value.where == "version 3, shard hybrid-0/rank-1"
    assert version.shards[1].digest in caught.value.what
    assert caught.value.what.count("xxh3:") == 2


def test_a_shard_that_is_not_in_this_pod_is_no_lie(tmp_path: Path) -> None:
    version = small_version(tmp_path, 3)
    Path(version.shards[1].path).unlink()
    with pytest.raises(EnvironmentFault, match="is not in this pod; fetch it from localhost:7401"):
        verify_version(version)

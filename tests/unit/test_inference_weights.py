"""Weights of a version, cut by the trainer in any way, come out whole for every rank of the engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twinpod.errors import IntegrityError, ProtocolError
from twinpod.inference.weight_loader import load_version, read_manifest
from twinpod.inference.weight_parts import CutTensor, Mappings, WeightReader, verify
from twinpod.testing.standby_driver import publish


def tensors(layers: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shapes = {"model.embed_tokens.weight": (70, 16), "model.norm.weight": (16,), "lm_head.weight": (70, 16)}
    for layer in range(layers):
        attention, ffn = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        shapes |= {attention + f"{kind}_proj.weight": (8 if kind in "kv" else 16, 16) for kind in "qkvo"}
        shapes |= {
            attention + "q_proj.bias": (16,),
            ffn + "up_proj.weight": (24, 16),
            ffn + "down_proj.weight": (16, 24),
        }
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_tensors_for_one_rank(
    tmp_path: Path, tensor_parallel: int, pipeline_parallel: int, dtype: torch.dtype
) -> None:
    wanted = tensors(dtype=dtype)
    version, _, _ = publish(tmp_path, wanted, 3, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    mappings = Mappings()
    reader = WeightReader(version, mappings)
    found = {name: torch.empty(tensor.shape, dtype=dtype).copy_(tensor) for name, tensor in reader.tensors()}
    mappings.close()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("begin", "length"), [(0, 35), (35, 35), (10, 30), (0, 70), (69, 1), (7, 0)])
def test_a_range_of_a_cut_tensor(tmp_path: Path, begin: int, length: int) -> None:
    wanted = tensors()
    version, _, _ = publish(tmp_path, wanted, 1, tensor_parallel=2)
    mappings = Mappings()
    reader = WeightReader(version, mappings)
    cut = dict(reader.tensors())["lm_head.weight"]
    assert isinstance(cut, CutTensor)
    expected = wanted["lm_head.weight"]
    assert (cut.shape, cut.dtype, cut.dim()) == (expected.shape, expected.dtype, 2)
    assert torch.equal(cut.narrow(0, begin, length), expected[begin : begin + length])
    assert torch.equal(cut[begin : begin + length], expected[begin : begin + length])
    assert torch.equal(cut.narrow(1, 3, 4), expected[:, 3:7])
    assert torch.equal(torch.zeros(70, 16).copy_(cut), expected)
    assert torch.equal(cut[-1], expected[-1])
    mappings.close()


def test_a_range_inside_one_part_is_not_copied(tmp_path: Path) -> None:
    version, _, _ = publish(tmp_path, tensors(), 1, tensor_parallel=2)
    mappings = Mappings()
    reader = WeightReader(version, mappings)
    cut = dict(reader.tensors())["model.layers.0.self_attn.o_proj.weight"]
    first, again = cut.narrow(1, 8, 8), cut.narrow(1, 10, 2)
    assert again.data_ptr() == first.data_ptr() + 2 * 4  # the same bytes of shared memory
    mappings.close()


def test_a_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    version, _, _ = publish(tmp_path, tensors(), 5, tensor_parallel=2)
    verify(version)
    path = Path(version.shards[1].path)
    raw = bytearray(path.read_bytes())
    raw[version.shards[1].layout.slot_bytes * version.shards[1].slot + 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"version 5, shard played/rank-1 .*expected digest xxh3:.*found xxh3:"):
        verify(version)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    version, _, _ = publish(tmp_path, tensors(), 5, tensor_parallel=2)
    half = replace(version, shards=version.shards[:1])
    mappings = Mappings()
    reader = WeightReader(half, mappings)
    with pytest.raises(ProtocolError, match=r"version 5, tensor .*tile \d+ of \d+"):
        dict(reader.tensors())
    Path(version.shards[1].path).unlink()
    with pytest.raises(ProtocolError, match=r"shard played/rank-1.*does not exist"):
        WeightReader(version, Mappings())


def test_only_the_announced_manifest_is_read(tmp_path: Path) -> None:
    version, manifest, digest = publish(tmp_path, tensors(), 5)
    assert read_manifest(manifest, digest) == version
    with pytest.raises(IntegrityError, match="expected digest xxh3:0, found xxh3:"):
        read_manifest(manifest, "xxh3:0")
    with pytest.raises(ProtocolError, match="stage the version"):
        read_manifest(str(tmp_path / "version-6.json"), digest)
    assert json.loads(Path(manifest).read_text())["version"] == 5


class Model(torch.nn.Module):
    """Takes what it knows, in silence, as SGLang's models do."""

    def __init__(self, wanted: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = list(wanted)
        self.kept = torch.nn.ParameterList([torch.zeros_like(tensor) for tensor in wanted.values()])

    def load_weights(self, weights) -> None:
        for name, tensor in weights:
            if name in self.names:
                self.kept[self.names.index(name)].data.copy_(tensor)


def test_a_load_that_misses_a_parameter_fails(tmp_path: Path) -> None:
    wanted = tensors()
    model = Model(wanted)
    load_version(model, publish(tmp_path, wanted, 1, tensor_parallel=2)[0])
    assert all(torch.equal(kept, tensor) for kept, tensor in zip(model.kept, wanted.values(), strict=True))
    del wanted["model.norm.weight"]
    with pytest.raises(ProtocolError, match=r"version 2: 1 parameters .*kept\.1; check that trainer and engine"):
        load_version(model, publish(tmp_path, wanted, 2)[0])


def test_weights_that_hold_nan_are_called_so_and_not_another_model(tmp_path: Path) -> None:
    wanted = tensors()
    model = Model(wanted)
    wanted["model.norm.weight"][0] = float("nan")
    with pytest.raises(IntegrityError, match=r"version 3: model\.norm\.weight holds NaN as it was published"):
        load_version(model, publish(tmp_path, wanted, 3)[0])


class Taker(torch.nn.Module):
    """Takes every tensor by its name; `misses` are left alone, `moves` get other memory."""

    def __init__(self, wanted: dict[str, torch.Tensor], misses: str = "", moves: str = "") -> None:
        super().__init__()
        self.misses, self.moves = misses, moves
        for name, tensor in wanted.items():
            empty = torch.nn.Parameter(torch.zeros_like(tensor), requires_grad=False)
            self.register_parameter(name.replace(".", "/"), empty)

    def load_weights(self, found: object) -> None:
        """As SGLang's models do."""
        for name, tensor in found:  # type: ignore[attr-defined]
            parameter = self.get_parameter(name.replace(".", "/"))
            if name == self.moves:
                parameter.data = torch.empty_like(parameter).copy_(tensor)
            elif name != self.misses:
                parameter.data.copy_(tensor)


def test_arenas_stay_mapped_from_one_version_to_the_next_until_another_file_lies_there(tmp_path: Path) -> None:
    wanted, mappings = tensors(), Mappings()
    model = Taker(wanted, moves="model.norm.weight")
    mapped = []
    for number in (1, 3):
        version, _, _ = publish(tmp_path, {name: x + number for name, x in wanted.items()}, number)
        load_version(model, version, mappings)
        mapped.append(mappings.arena(version.shards[0], number))
        assert all(torch.equal(model.get_parameter(n.replace(".", "/")), x + number) for n, x in wanted.items())
    assert mapped[0] is mapped[1]
    (tmp_path / "rank-0.arena").unlink()
    version, _, _ = publish(tmp_path, wanted, 5)
    load_version(model, version, mappings)
    assert all(torch.equal(model.get_parameter(n.replace(".", "/")), x) for n, x in wanted.items())


def test_a_parameter_that_was_left_alone_is_named(tmp_path: Path) -> None:
    wanted = tensors()
    version, _, _ = publish(tmp_path, wanted, 1)
    with pytest.raises(ProtocolError, match=r"1 parameters .* instance model/norm/weight"):
        load_version(Taker(wanted, misses="model.norm.weight"), version)

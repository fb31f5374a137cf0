"""What an image lacks is told in one line, when a process starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from twinpod.errors import EnvironmentFault
from twinpod.inference import needs
from twinpod.needs import Module, Program, check_needs
from twinpod.trainer.megatron import start_ranks


def test_what_is_there_is_no_trouble() -> None:
    check_needs([Module(name="json", why="x"), Module(name="json", why="x", find_only=True)], mend="")
    check_needs([Program(name="sh", why="x")], mend="")


@pytest.mark.parametrize(
    ("need", "line"),
    [
        (Module(name="no_such_module", why="to fly"), "No module named"),
        (Module(name="no_such_module", why="to fly", find_only=True), "No such module"),
        (Module(name="no_such.module", why="to fly", find_only=True), "No module named"),
        (Program(name="no-such-program", why="to fly"), "No such program on the path"),
    ],
)
def test_what_lacks_is_named_with_the_reason_and_what_to_do(need: Module | Program, line: str) -> None:
    with pytest.raises(EnvironmentFault, match=rf"^{need.name}: is needed to fly: .*{line}.*; buy wings$"):
        check_needs([need], mend="buy wings")


def test_a_module_of_another_build_is_told_and_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_build.py").write_text("raise OSError('libcudart.so.11:\\n cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"broken_build: is needed x: OSError: libcudart.so.11: cannot open"):
        check_needs([Module(name="broken_build", why="x")], mend="")
    assert "broken_build" not in sys.modules


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without Transformer Engine")
def test_a_trainer_on_a_gpu_without_transformer_engine_says_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EnvironmentFault, match=r"transformer_engine.*NVIDIA's PyTorch image.*layerSpec: Local"):
        start_ranks(local_rank=0, dtype="float32")


def test_an_engine_that_sleeps_needs_its_library_and_a_standby_that_spawns_imports_none() -> None:
    names = {need.name for need in needs.on_gpus(imported=True, sleep=False)}
    assert {"sgl_kernel", "g++"} <= names
    asleep = needs.on_gpus(imported=False, sleep=True)
    assert {need.name for need in asleep} == {*names, "torch_memory_saver"}
    assert all(need.find_only for need in asleep if isinstance(need, Module))

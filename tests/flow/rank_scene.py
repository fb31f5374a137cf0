"""What the ranks of `test_trainer_layouts.py` measure with, and a folder that is broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Kept:
    """Counts the bytes that forward passes keep for backward passes; what those make again is not counted."""

    def __init__(self, weights: Iterable[int]) -> None:
        self._weights = set(weights)
        self.now = self.peak = 0

    def hold(self, tensor: Any) -> Held:
        """Called by torch for each tensor that is kept."""
        import torch

        within_backward = torch._C._current_graph_task_id() != -1
        weight = tensor.untyped_storage().data_ptr() in self._weights
        return Held(self, tensor, 0 if within_backward or weight else tensor.nbytes)


class Held:
    """One tensor; it lives as long as the graph needs it."""

    def __init__(self, kept: Kept, tensor: Any, size: int) -> None:
        self.kept, self.tensor, self.size = kept, tensor, size
        kept.now += size
        kept.peak = max(kept.peak, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.size


def make_hole(folder: Path, broken: Path) -> None:
    """The folder again; the last file has a hole before its data, which safetensors takes for a fault.

    Its header is right by itself, so only who reads that file finds out.
    """
    shutil.copytree(folder, broken)
    path = max(broken.glob("*.safetensors"))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    for name, entry in table.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + 64 for offset in entry["data_offsets"]]
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64) + raw[8 + length :])

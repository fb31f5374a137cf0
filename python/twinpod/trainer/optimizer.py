"""What a rank asks of its optimizer. `platform_cpu` and `platform_gpu` have one each.

An optimizer lives as long as its rank, because in bfloat16 it holds the *main weights*: float32, what training really
moves. The parameters are their rounded copies. A step of 1e-6 is far below half a unit in the last place of a bfloat16
weight; made from the parameters anew in each iteration, the sum of many such steps would be lost. What each iteration
forgets (paper.md section 5) are the moments and the step count alone.

In float32 the parameters are the main weights: `main_tensors` is empty and `blank` gives the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from twinpod.records.training import TrainSettings

Weights = Mapping[str, Tensor]


class Optimizer(Protocol):
    """AdamW over a rank's weights, by the parameters' names. Methods that say so are collective over all ranks."""

    def begin(self, settings: TrainSettings) -> None:
        """A new iteration: AdamW without a past, with these numbers."""
        ...

    def zero_grad(self) -> None:
        """Forget all gradients."""
        ...

    def step(self) -> float:
        """Update the weights; returns the gradient norm before clipping. Collective.

        The weights stay as they are when the norm is not finite.
        """
        ...

    def end(self) -> None:
        """The iteration is over: let go of moments."""
        ...

    def drop_gradients(self) -> None:
        """Let go of the memory of gradients."""
        ...

    def main_tensors(self) -> Weights:
        """The main weights that this rank holds, to be moved with the parameters when memory changes hands."""
        ...

    def blank(self) -> Weights:
        """Tensors to fill with whole weights, then to give to `take`."""
        ...

    def take(self, weights: Weights) -> None:
        """`weights` are the main weights from now on, the parameters their rounded copies."""
        ...

    def gather(self) -> Weights:
        """The main weights, whole as the parameters are. Read them, do not write. Collective."""
        ...


def fill(optimizer: Optimizer, act: Callable[[Weights], None]) -> None:
    """Give a rank its weights: `act` writes them into tensors that are named and shaped like the parameters."""
    weights = optimizer.blank()
    act(weights)
    optimizer.take(weights)

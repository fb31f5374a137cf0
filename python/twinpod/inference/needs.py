"""What an engine needs of its image on an NVIDIA GPU, beyond what it needs anywhere."""

from __future__ import annotations

from twinpod.needs import Module, Program

__all__ = ["MEND", "on_gpus"]

MEND = "build the inference image on SGLang's own (images/README.md)"


def on_gpus(*, imported: bool, sleep: bool) -> tuple[Module | Program, ...]:
    """`imported`: SGLang is imported here anyway. `sleep`: memory is to be given back and taken again."""
    needs: list[Module | Program] = [
        Module(name="sgl_kernel", why="for SGLang's kernels on GPUs", find_only=not imported),
        Module(name="flashinfer", why="for attention and sampling on GPUs", find_only=True),
        Program(name="g++", why="to compile kernels when they are first used"),
    ]
    if sleep:
        needs.append(Module(name="torch_memory_saver", why="for lifeCycle Sleep", find_only=True))
    return tuple(needs)

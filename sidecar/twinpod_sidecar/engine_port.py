"""The engine as the inference half needs it; the vendor's adapter is wired in `__main__`."""

from __future__ import annotations

from typing import Any, Protocol

from twinpod.inference.sglang_engine import EngineSpec


class Engine(Protocol):
    """An engine that was started, as its half talks to it. Any error means: restart it. (Six: sleeping is a pair.)"""

    async def wait_healthy(self, deadline_s: float) -> object:
        """Return when it answers."""
        ...

    async def load(self, payload: str, version: int) -> float:
        """Load the weights and observe the version; returns seconds."""
        ...

    async def abort_all(self) -> None:
        """Cut all generations."""
        ...

    async def release(self) -> None:
        """Give its memory back."""
        ...

    async def resume(self) -> None:
        """Undo `release`."""
        ...

    async def close(self) -> None:
        """Forget the connections."""
        ...


class EngineKind(Protocol):
    """The vendor: what an engine is started with, and how it is talked to."""

    def arguments(self, spec: EngineSpec) -> dict[str, Any]:
        """What the standby starts it with."""
        ...

    def connect(self, url: str, api_key: str, tensor_parallel: int) -> Engine:
        """A client of it."""
        ...

"""Several engines of one pod as one: each sequence goes to the engine that has fewest, and its outputs come from there.

An engine that is lost ends the whole stream, as a lone one does: the half replaces all engines of a start together.
Sequences are spread one by one, so that no engine gets more than its share of what the pod may run; a prompt is
prefilled once by each engine that has a sample of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from twinpod.rollout.ports import EngineOutput, EnginePort, EngineRequest, Finish

__all__ = ["Engines", "several"]


def several(engines: Sequence[EnginePort]) -> EnginePort:
    """One port to all of them; a lone one stays itself."""
    return engines[0] if len(engines) == 1 else Engines(engines)


class Engines:
    """An EnginePort over others. Use it in one event loop.

    Invariant: `_at` has the engine of every sequence that has not had its last output; `_running` counts them.
    """

    def __init__(self, engines: Sequence[EnginePort]) -> None:
        self._engines = tuple(engines)
        self._running = [0] * len(engines)
        self._at: dict[str, int] = {}

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncIterator[EngineOutput]:
        """See EnginePort."""
        shares: dict[int, list[EngineRequest]] = {}
        for request in requests:
            index = self._running.index(min(self._running))
            self._running[index] += 1
            self._at[request.name] = index
            shares.setdefault(index, []).append(request)
        streams = {index: aiter(self._engines[index].generate(share)) for index, share in shares.items()}
        coming = {asyncio.create_task(_next(stream)): stream for stream in streams.values()}
        try:
            while coming:
                done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    stream, output = coming.pop(task), task.result()
                    if output is None:
                        continue  # this stream has ended
                    if output.finish is not Finish.RUNNING:
                        self._over(output.name)
                    coming[asyncio.create_task(_next(stream))] = stream
                    yield output
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
            for stream in streams.values():
                if isinstance(stream, AsyncGenerator):
                    await stream.aclose()
            for request in requests:
                self._over(request.name)

    def _over(self, name: str) -> None:
        index = self._at.pop(name, None)
        if index is not None:
            self._running[index] -= 1

    async def abort(self, name: str) -> None:
        """See EnginePort."""
        if (index := self._at.get(name)) is not None:
            await self._engines[index].abort(name)

    async def abort_all(self) -> None:
        """See EnginePort."""
        await asyncio.gather(*(engine.abort_all() for engine in self._engines))

    async def close(self) -> None:
        """See EnginePort."""
        await asyncio.gather(*(engine.close() for engine in self._engines))


async def _next(stream: AsyncIterator[EngineOutput]) -> EngineOutput | None:
    return await anext(stream, None)

"""The queue with its workers."""

from __future__ import annotations

import asyncio

from twinpod_operator.nouns import Key
from twinpod_operator.queue import KeyQueue

KEYS = 100


async def test_keys_that_wait_for_nothing_hold_up_nobody_else() -> None:
    queue, done = KeyQueue(), asyncio.Event()
    worked: list[Key] = []

    async def work(key: Key) -> None:
        worked.append(key)
        if len(worked) == KEYS:
            done.set()

    for number in range(KEYS):
        queue.add(Key(kind="RLJob", namespace="n", name=str(number)))
    running = asyncio.create_task(queue.run(work, workers=1))
    turns = 0  # of this task, in whose place the renewal of the lease may be
    while not done.is_set():
        turns += 1
        await asyncio.sleep(0)
    running.cancel()
    assert turns >= KEYS
    assert len(set(worked)) == KEYS

"""What the kubelet does with probes: ask over HTTP or TCP, count failures in a row."""

from __future__ import annotations

import asyncio
import contextlib

from twinpod.local.plan import Probe


async def passes(probe: Probe, address: str) -> bool:
    """One question; any answer from 200 to 399 passes, and for TCP a connection."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, IndexError):
        async with asyncio.timeout(probe.timeout_s):
            reader, writer = await asyncio.open_connection(address, probe.port)
            try:
                if not probe.path:
                    return True
                writer.write(f"GET {probe.path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                status = int((await reader.readline()).split()[1])
                return 200 <= status < 400
            finally:
                writer.close()
    return False


async def until_passed(probe: Probe, address: str) -> bool:
    """Startup: True at the first pass, False after `failures` refusals in a row."""
    await asyncio.sleep(probe.initial_delay_s)
    for _ in range(probe.failures):
        if await passes(probe, address):
            return True
        await asyncio.sleep(probe.period_s)
    return False


async def until_failed(probe: Probe, address: str) -> None:
    """Liveness: returns when `failures` questions in a row were not answered."""
    await asyncio.sleep(probe.initial_delay_s)
    failures = 0
    while failures < probe.failures:
        failures = 0 if await passes(probe, address) else failures + 1
        await asyncio.sleep(probe.period_s)

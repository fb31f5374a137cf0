"""`python -m tests.bench.operator_profile [JOBS]`: where the processor's time goes while jobs are applied all at once.

Prints milliseconds a job of every process that takes part, and the functions of the API server that took most of its
time with what they call (by `go tool pprof`). Writes nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
from tests.bench.operator_scale import TICKS, Stage, job, staged

SAMPLE_S = 15.0
OURS = re.compile(r"k8s\.io/|go\.etcd\.io|crypto/tls|encoding/json|runtime\.(gcBgMarkWorker|mallocgc|schedule)$")


def spent_s(pid: int) -> float:
    """Processor seconds of a process so far; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def processes(stage: Stage) -> dict[str, int]:
    """Who works, by name."""
    found = {file.name: int(file.read_text()) for file in stage.cluster.layout.pids.iterdir()}
    found |= {"operator": stage.operator.process.pid, "this bench": os.getpid()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            line = (entry / "cmdline").read_bytes() if (entry / "cmdline").exists() else b""
            if b"tests.bench.fake_node" in line:
                found["fake nodes"] = int(entry.name)
            elif b"etcd" in line and str(stage.scene.folder).encode() in line:
                found["the platform's etcd"] = int(entry.name)
    return found


async def functions(stage: Stage, seconds: float) -> str:
    """Of the API server, in these seconds: the share of its time by function, with what it calls."""
    url = f"{stage.reach.server}/debug/pprof/profile?seconds={seconds:.0f}"
    async with stage.session.get(url, timeout=aiohttp.ClientTimeout(total=2 * seconds + 30)) as answer:
        answer.raise_for_status()
        data = await answer.read()
    with tempfile.NamedTemporaryFile(suffix=".pprof") as file:
        file.write(data)
        file.flush()
        command = ["go", "tool", "pprof", "-top", "-cum", "-nodecount=400", file.name]
        text = await asyncio.to_thread(
            subprocess.check_output, command, stderr=subprocess.DEVNULL, text=True, timeout=180
        )
    head, _, table = text.partition("flat  flat%")
    kept = [line for line in table.splitlines()[1:] if OURS.search(line)]
    return head + "\n".join(kept[:70])


async def profile(count: int) -> None:
    """Prints it all."""
    async with staged() as stage:
        who = processes(stage)
        mark = stage.cluster.audit_mark()
        began, before = time.monotonic(), {name: spent_s(pid) for name, pid in who.items()}
        sampling = asyncio.create_task(functions(stage, SAMPLE_S))
        await stage.apply("rljobs", [job(number) for number in range(count)])
        await stage.until(lambda: len(stage.whole) >= count, f"pods of {count} jobs")
        seconds = max(stage.whole.values()) - began
        print(f"{count} jobs in {seconds:.1f} s: {count / seconds:.1f} jobs/s; processor milliseconds a job:")
        for name, pid in sorted(who.items(), key=lambda one: before[one[0]] - spent_s(one[1])):
            print(f"  {name:<28}{1000 * (spent_s(pid) - before[name]) / count:8.1f}")
        asked = Counter((one.user.rpartition(":")[2], one.verb, one.resource) for one in stage.cluster.audit(mark))
        print("\nrequests a job:")
        for (user, verb, resource), number in asked.most_common(40):
            print(f"  {user:<32}{verb:<8}{resource:<36}{number / count:6.2f}")
        print(f"\nAPI server, the first {SAMPLE_S:.0f} s of it:\n{await sampling}")


if __name__ == "__main__":
    asyncio.run(profile(int(sys.argv[1]) if len(sys.argv) > 1 else 250))

"""What `make demo` and `make smoke` show of a job: a line whenever it changes, and the reward curve in characters."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from twinpod.client.kubectl import Kubectl
from twinpod.errors import EnvironmentFault

_T = TypeVar("_T")
LOOK_S = 2.0
TRIES, AGAIN_S = 4, 5.0  # of a call; between its tries
WIDTH = 60


def say(line: str) -> None:
    """One line of the demo's own."""
    print(f"demo: {line}", flush=True)


def steadily(call: Callable[[], _T], rest: Callable[[float], None] = time.sleep) -> _T:
    """What the call gives. One that the cluster did not answer, or answered with an error of its own, is made again:
    a job of minutes is not given up for one of a hundred looks.
    """
    for _ in range(TRIES - 1):
        try:
            return call()
        except EnvironmentFault as error:
            say(f"{error.line()}; asks again in {AGAIN_S:.0f} s")
            rest(AGAIN_S)
    return call()


def follow(kubectl: Kubectl, job: str) -> str:
    """Prints a line whenever something changed; the condition that ended the job."""
    began, told = time.monotonic(), ""
    while True:
        line, ended = look(steadily(lambda: kubectl.json("get", "rlj", job)))
        if line != told:
            print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)
            told = line
        if ended:
            return ended
        time.sleep(LOOK_S)


def look(resource: dict[str, Any]) -> tuple[str, str]:
    """A job's state in one line, and the condition that ended it, if one did. Pure."""
    status = resource.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    ended = next((name for name in ("Succeeded", "Failed") if conditions.get(name, {}).get("status") == "True"), "")
    ready = conditions.get(ended or "Ready", {})
    wanted = resource["spec"].get("iterations", "?")
    parts = [f"iteration {status.get('iteration', 0)}/{wanted}"]
    parts += [f"reward {status['reward']}"] if status.get("reward") else []
    parts += [f"pods {status['pods']}"] if status.get("pods") else []
    parts += [f"{status['restarts']} restarts"] if status.get("restarts") else []
    why = ready.get("reason", "the operator has not seen it yet")
    parts.append(f"{ended or why}: {ready['message']}" if ready.get("message") else ended or why)
    return ", ".join(parts), ended


def describe(kubectl: Kubectl, job: str) -> None:
    """To stderr: what a person would look at when a job does not end as it should."""
    for words in (("describe", "rlj", job), ("get", "rolloutpools,pods", "-o", "wide")):
        print(kubectl.text(*words), file=sys.stderr)


def sketch(rewards: list[float], height: int = 10) -> Iterator[str]:
    """The reward curve in characters. Pure."""
    if not rewards:
        yield "no iteration was committed"
        return
    step = max(1, math.ceil(len(rewards) / WIDTH))
    means = [sum(rewards[at : at + step]) / len(rewards[at : at + step]) for at in range(0, len(rewards), step)]
    low, high = min(0.0, *means), max(means)
    span = (high - low) or 1.0
    for row in range(height, 0, -1):
        bar = "".join("█" if (mean - low) / span * height >= row - 0.5 else " " for mean in means)
        label = f"{high:8.3f} " if row == height else f"{low:8.3f} " if row == 1 else " " * 9
        yield f"{label}│{bar}"
    yield f"{'':9}└{'─' * len(means)}  reward over {len(rewards)} iterations"

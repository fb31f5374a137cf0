"""One look at one resource: observe, plan, act, one write of status if it differs, and when to look again.

After actions the world is observed and planned once more, so that the status tells what they led to (a refusal above
all) and not what was before them; the actions of that second plan are left to the next look, which follows at once.
The first look at a resource makes what it consists of, and tells nothing: its status comes with the second one, which
stands in line behind whoever waits for the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from twinpod_operator.actions import ActionMark, let_through
from twinpod_operator.apply import Actor, Done
from twinpod_operator.kinds import kind_of
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import ApiConflict, NotFound
from twinpod_operator.nouns import Action, Emit, Finding, Key, Manifest, Observed, Plan
from twinpod_operator.observe import Observer
from twinpod_operator.policies.attempts import vanished
from twinpod_operator.policies.volumes import unseen_state
from twinpod_operator.render_containers import Platform
from twinpod_operator.world import World

AGAIN_S = 0.0
CONFLICT_S = 1.0  # for the watch to bring what we did not know
REFUSED_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)


class Planner(Protocol):
    """`plan.plan`."""

    def __call__(self, observed: Observed, platform: Platform, now: float) -> Plan:
        """What to do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    findings: tuple[Finding, ...]
    marks: frozenset[ActionMark]
    times: int  # in a row
    generation: int
    until: float


class Refusals:
    """Why the newest actions of each resource were refused, and which of them wait until when.

    What was refused is not tried again before its time, however often events wake the resource; a change of its spec
    ends the wait.
    """

    def __init__(self) -> None:
        self._found: dict[Key, _Refusal] = {}

    def get(self, key: Key) -> tuple[Finding, ...]:
        """Of one resource."""
        found = self._found.get(key)
        return found.findings if found is not None else ()

    def held(self, key: Key, generation: int, now: float) -> frozenset[ActionMark]:
        """Actions that are not to be tried now."""
        found = self._found.get(key)
        if found is None or found.generation != generation or now >= found.until:
            return frozenset()
        return found.marks

    def wait_s(self, key: Key, now: float) -> float:
        """How long what is held waits."""
        found = self._found.get(key)
        return max(0.0, found.until - now) if found is not None else 0.0

    def set(
        self, key: Key, findings: list[Finding], marks: Iterable[ActionMark] = (), *, generation: int = 0, now: float
    ) -> float | None:
        """What the newest actions met; returns after how long to try again, None when all went well."""
        if not findings:
            self._found.pop(key, None)
            return None
        before = self._found.get(key)
        times = before.times if before is not None else 0
        wait = REFUSED_S[min(times, len(REFUSED_S) - 1)]
        self._found[key] = _Refusal(
            findings=tuple(sorted(set(findings))),
            marks=frozenset(marks),
            times=times + 1,
            generation=generation,
            until=now + wait,
        )
        return wait

    def add(self, key: Key, findings: list[Finding], marks: Iterable[ActionMark]) -> None:
        """What further actions met while others are held; they wait as long as those."""
        before = self._found[key]
        self._found[key] = replace(
            before,
            findings=tuple(sorted({*before.findings, *findings})),
            marks=before.marks | frozenset(marks),
        )


class Reconciler:
    """Life: of a leader. `work` is what the queue's workers do."""

    def __init__(
        self,
        *,
        api: Api,
        world: World,
        observer: Observer,
        actor: Actor,
        refusals: Refusals,
        plan: Planner,
        platform: Platform,
        resync_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._world, self._observer, self._actor = api, world, observer, actor
        self._refusals, self._plan, self._platform = refusals, plan, platform
        self._resync_s, self._clock = resync_s, clock

    async def work(self, key: Key) -> float | None:
        """Seconds until it is to be looked at again, None when it is gone."""
        observed = await self._look(key)
        if observed is None:
            self._refusals.set(key, [], now=self._clock())
            return None
        plan = self._plan(observed, self._platform, self._clock())
        wake: list[float] = [self._resync_s]
        held = self._refusals.held(key, observed.generation, self._clock())
        actions = let_through(plan.actions, held)
        waits = len(actions) < len(plan.actions)
        if waits:
            wake.append(self._refusals.wait_s(key, self._clock()))
        if actions:
            first = not observed.status
            done = await self._actor.act(observed, unsaid(actions) if first else actions)
            wake += self._after(observed, done, waits=waits)
            if first and not done.refusals and done.stale is None and unsaid(actions):
                return AGAIN_S
            after = await self._look(key)
            if after is None or after.uid != observed.uid:
                return AGAIN_S
            told = set() if first else set(emits(plan))
            observed, plan = after, self._plan(after, self._platform, self._clock())
            await self._actor.act(observed, tuple(one for one in emits(plan) if one not in told))
            more = [one for one in let_through(plan.actions, held) if not isinstance(one, Emit)]
            if more and not done.refusals and done.stale is None:
                wake.append(AGAIN_S)
        elif self._refusals.get(key) and not waits:
            self._refusals.set(key, [], now=self._clock())
            wake.append(AGAIN_S)
        if plan.wake_after_s is not None:
            wake.append(max(0.05, plan.wake_after_s))
        if plan.status is not None and not await self._write(observed, plan.status):
            wake.append(CONFLICT_S)
        return min(wake)

    async def _look(self, key: Key) -> Observed | None:
        """The resource; what should be there and is not seen may only have lost its labels, and is looked for.

        More may lose theirs meanwhile (`kubectl label pods --all`): nothing is judged before all were looked for.
        """
        observed = self._observer.observe(key)
        if observed is None:
            return None
        sought: set[str] = set()
        while names := [name for name in vanished(observed) if name not in sought]:
            for name in names:
                sought.add(name)
                await self._actor.find(observed, name)
            observed = self._observer.observe(key) or observed
        state = unseen_state(observed)
        if state is not None and await self._actor.find_claim(observed, state):
            observed = self._observer.observe(key) or observed
        return observed

    def _after(self, observed: Observed, done: Done, *, waits: bool) -> list[float]:
        refused = None
        if not waits:
            refused = self._refusals.set(
                observed.key, done.refusals, done.refused, generation=observed.generation, now=self._clock()
            )
        elif done.refusals:
            self._refusals.add(observed.key, done.refusals, done.refused)
        return [seconds for seconds in (refused, CONFLICT_S if done.stale else None) if seconds is not None]

    async def _write(self, observed: Observed, status: Manifest) -> bool:
        """Patches what differs; False when the resource is not the one that was observed."""
        change = difference(observed.status or {}, status)
        if not change:
            return True
        key, body = observed.key, {"metadata": {"uid": observed.uid}, "status": change}
        try:
            answer = await self._api.merge(kind_of(key.kind), key.namespace, key.name, body, subresource="status")
        except (NotFound, ApiConflict):
            return False
        self._world.put(answer, own=True)
        return True


def unsaid(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """Without what is only said. Pure."""
    return tuple(action for action in actions if not isinstance(action, Emit))


def emits(plan: Plan) -> tuple[Emit, ...]:
    """What the plan wants said. Pure."""
    return tuple(action for action in plan.actions if isinstance(action, Emit))


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The JSON merge patch from one object to the other; empty when they are equal. Pure."""
    change: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        held = before.get(key)
        if isinstance(value, dict) and isinstance(held, dict):
            if inner := difference(held, value):
                change[key] = inner
        elif key not in before or held != value:
            change[key] = value
    return change

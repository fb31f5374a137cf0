"""The operator's process: `python -m twinpod_operator`, in a pod or outside of the cluster with KUBECONFIG.

Life. Liveness is served at once; the lease is waited for; then everything is wired and runs (`leading.py`). SIGTERM
ends it in order and gives the lease away. A lost lease, or anything that nobody knows how to mend, ends it with
exit code 1: it is started again as one that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping

from twinpod.api import names
from twinpod.errors import TwinpodError
from twinpod_operator.fence import Fence
from twinpod_operator.kube import Api
from twinpod_operator.kube_errors import LeaseLost
from twinpod_operator.leader import FENCE_SHARE, Leader
from twinpod_operator.leading import Tools, lead
from twinpod_operator.liveness import Liveness, Metrics
from twinpod_operator.login import Login, find_login
from twinpod_operator.settings import Settings, from_environment

log = logging.getLogger("twinpod_operator")
ORDERLY_S = 5.0  # for a lost leader to end


class _Open:
    """The gate of the lease's own writes: each carries the resource version that it goes over."""

    def check(self) -> None:
        """Always open."""


class Operator:
    """One process. Life: `run` once."""

    def __init__(self, settings: Settings, login: Login) -> None:
        self._settings, self._login = settings, login
        self._stop = asyncio.Event()
        self._metrics = Metrics()
        self._fence = Fence(settings.lease_s * FENCE_SHARE)
        self._waiting, self._ready = True, False

    async def run(self) -> None:
        """Until a signal; LeaseLost when another replica took over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._metrics.gauges["twinpod_operator_leading"] = lambda: float(self._fence.open)
        name = self._settings.identity
        async with (
            Liveness(self._settings.port, self._metrics, lambda: self._waiting or self._ready),
            Api(self._login, _Open(), self._metrics, identity=name, timeout_s=self._settings.lease_s / 3) as election,
            Api(self._login, self._fence, self._metrics, identity=name) as api,
        ):
            leader = Leader(
                election,
                self._fence,
                namespace=self._settings.namespace,
                name=names.LEASE,
                identity=self._settings.identity,
                duration_s=self._settings.lease_s,
            )
            if not await self._acquire(leader):
                return
            self._waiting = False
            await self._lead(leader, api)
            await leader.release()

    async def _acquire(self, leader: Leader) -> bool:
        """True as the leader, False when told to stop before."""
        acquiring, stopping = asyncio.create_task(leader.acquire()), asyncio.create_task(self._stop.wait())
        await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if acquiring.done():
            acquiring.result()
            return True
        acquiring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await acquiring
        return False

    async def _lead(self, leader: Leader, api: Api) -> None:
        """Works and renews; ends with whichever ends first. Until it is ready, a signal ends it where it waits."""
        tools = Tools(settings=self._settings, login=self._login, api=api, metrics=self._metrics)
        working = asyncio.create_task(lead(tools, self._stop, self._is_ready))
        renewing = asyncio.create_task(leader.keep())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({working, renewing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done() and not self._ready:
            working.cancel()  # Kopf, which hears of it later, may not run yet, and what is waited for may never come
        stopping.cancel()
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if renewing.done():
            self._fence.close()
            asyncio.get_running_loop().call_later(ORDERLY_S, _abandon)
            working.cancel()  # ours, from the top: Kopf waits for ever when all its tasks are cancelled at once
            await asyncio.wait({working})
            renewing.result()
        renewing.cancel()
        if not working.cancelled() or not self._stop.is_set():
            working.result()

    def _is_ready(self) -> None:
        self._ready = True


def _abandon() -> None:
    """The last resort: the process must not live on beside another leader, whatever holds it."""
    log.error("the lease is lost, and what was begun does not end in order within %.0f s: left as it is", ORDERLY_S)
    logging.shutdown()
    os._exit(1)


def _innermost(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def main(environment: Mapping[str, str]) -> int:
    """The exit code."""
    level = environment.get("TWINPOD_LOG_LEVEL", "INFO")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    gc.set_threshold(100_000, 50, 100)  # thousands of parsed objects a second, hardly ever a cycle among them
    try:
        settings, login = from_environment(environment), find_login(dict(environment))
        asyncio.run(Operator(settings, login).run())
    except TwinpodError as error:
        log.error("%s", error)  # noqa: TRY400  # one line, no trace: it says what to do
        return error.exit_code
    except BaseExceptionGroup as group:
        if lost := group.subgroup(LeaseLost):
            log.error("%s", _innermost(lost))  # noqa: TRY400
        else:
            log.exception("the operator ended")
        return 1
    return 0


if __name__ == "__main__":
    code = main(os.environ)
    logging.shutdown()
    os._exit(code)  # nothing may linger: another replica may lead by now

"""What the operator says of itself over plain HTTP: /healthz, /readyz and /metrics (Prometheus' text format).

Served from the first moment on, also by a replica that waits for the lead, so that nobody restarts it for waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from aiohttp import web

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one process. Written from anywhere in its loop, read by `text`."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self._seconds = 0.0
        self.gauges: dict[str, Callable[[], float]] = {}

    def request(self, verb: str, kind: str, code: int) -> None:
        """One request to the API server; code 0 without an answer."""
        self._requests[verb, kind, code] += 1

    def reconcile(self, seconds: float, outcome: str) -> None:
        """One piece of work of the queue."""
        self._outcomes[outcome] += 1
        self._seconds += seconds
        self._buckets[next((i for i, bound in enumerate(BOUNDS_S) if seconds <= bound), len(BOUNDS_S))] += 1

    def text(self) -> str:
        """All of them."""
        lines = ["# TYPE twinpod_operator_api_requests_total counter"]
        for (verb, kind, code), count in sorted(self._requests.items()):
            labels = f'verb="{verb}",kind="{kind}",code="{code}"'
            lines.append(f"twinpod_operator_api_requests_total{{{labels}}} {count}")
        lines.append("# TYPE twinpod_operator_reconciles_total counter")
        lines += [
            f'twinpod_operator_reconciles_total{{outcome="{name}"}} {n}' for name, n in sorted(self._outcomes.items())
        ]
        lines += self._histogram("twinpod_operator_reconcile_seconds")
        for name, value in sorted(self.gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {value():g}"]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        lines, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._buckets, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._seconds:.6f}", f"{name}_count {total}"]


class Liveness:
    """The HTTP server. Life: `async with`. Ready means: waits for the lead, or leads and has seen the world."""

    def __init__(self, port: int, metrics: Metrics, ready: Callable[[], bool]) -> None:
        self._metrics, self._ready, self._wanted = metrics, ready, port
        application = web.Application()
        application.add_routes(
            [web.get("/healthz", self._health), web.get("/readyz", self._readiness), web.get("/metrics", self._show)]
        )
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        self.port = 0

    async def __aenter__(self) -> Liveness:
        await self._runner.setup()
        await web.TCPSite(self._runner, port=self._wanted).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n") if self._ready() else web.Response(status=503, text="starting\n")

    async def _show(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text=self._metrics.text(), content_type="text/plain")

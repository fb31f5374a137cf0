"""Logs: one event a line, logfmt or JSON, with who says it (job, pod) and where the run stands (iteration, version).

log.info("iteration committed", extra={"iteration": 3, "reward": 0.41}) 2026-01-02T03:04:05.678Z info
twinpod.master.conductor "iteration committed" job=demo pod=demo-master iteration=3 reward=0.41
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class EventFormatter(logging.Formatter):
    """A record as one line.

    `fixed` fields come with every event. A traceback is a field in JSON, further lines in logfmt.
    """

    def __init__(self, fixed: Mapping[str, str], *, as_json: bool) -> None:
        super().__init__()
        self._fixed, self._as_json = dict(fixed), as_json

    def format(self, record: logging.LogRecord) -> str:
        """One event."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields: dict[str, Any] = self._fixed | {key: value for key, value in vars(record).items() if key not in _OWN}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            event = {
                "time": moment,
                "level": record.levelname.lower(),
                "logger": record.name,
                "event": record.getMessage(),
            } | fields
            return json.dumps(event | ({"trace": trace} if trace else {}), default=str)
        words = " ".join(f"{key}={_word(value)}" for key, value in fields.items())
        said = json.dumps(record.getMessage(), ensure_ascii=False)
        line = f"{moment} {record.levelname.lower():7} {record.name} {said} {words}".rstrip()
        return f"{line}\n{trace}" if trace else line


def set_up(*, job: str, pod: str, verbose: bool = False, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (stderr when None); called once, by a `__main__`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(EventFormatter({"job": job, "pod": pod}, as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for chatty in ("httpx", "httpcore", "matplotlib", "asyncio", "grpc._cython.cygrpc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n\t') else text

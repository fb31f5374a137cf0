"""Import this first in a module that is started as a container's process.

The kernel shields process 1 of a container from every signal that it does not handle, and imports take seconds: a
SIGTERM that came meanwhile was lost, and a pod that was deleted while it started took its whole grace to end. Nothing
is begun before the imports are done, so ending at once is in order. Who handles SIGTERM later replaces this.
"""

from __future__ import annotations

import os
import signal

__all__: list[str] = []

_ENDED_BY_SIGTERM = 128 + signal.SIGTERM

if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_ENDED_BY_SIGTERM))

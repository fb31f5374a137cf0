"""A real etcd beside the run: TLS for clients and peers, data in the run folder, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

from twinpod.errors import EnvironmentFault
from twinpod.local.processes import Process, start

CLIENT_PORT, PEER_PORT = 2379, 2380
START_TIMEOUT_S = 30.0
RETRY_S = 0.1


def command(address: str, data: Path, tls: Path) -> tuple[str, ...]:
    """etcd's command line; EnvironmentFault when the program is not there."""
    program = shutil.which("etcd")
    if program is None:
        raise EnvironmentFault(
            "the program etcd is not installed", where="local mode", mend="apt-get install etcd-server"
        )
    client, peer = f"https://{address}:{CLIENT_PORT}", f"https://{address}:{PEER_PORT}"
    files = {"cert-file": "tls.crt", "key-file": "tls.key", "trusted-ca-file": "ca.crt"}
    options = {
        "name": "local",
        "data-dir": str(data),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"local={peer}",
        "client-cert-auth": "true",
        "peer-client-cert-auth": "true",
        "auto-compaction-retention": "5m",
        "logger": "zap",
        "log-outputs": "stderr",
        "log-level": "warn",
        **{option: str(tls / name) for option, name in files.items()},
        **{f"peer-{option}": str(tls / name) for option, name in files.items()},
    }
    return (program, *(f"--{option}={value}" for option, value in options.items()))


class EtcdServer:
    """One member. Life: `start`, then `watch` until it is cancelled, then `stop`."""

    def __init__(self, address: str, data: Path, tls: Path, log: Path, note: Callable[[str], None]) -> None:
        self._command, self._log, self._note = command(address, data, tls), log, note
        self._address, self._tls = address, tls
        self._process: Process | None = None
        self.restarts = 0

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"{self._address}:{CLIENT_PORT}"

    async def start(self) -> None:
        """Returns when it answers; EnvironmentFault with the log's place when it does not."""
        self._process = await start(self._command, environment={"PATH": "/usr/bin:/bin"}, log=self._log)
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not await self._answers():
            if self._process.ended or asyncio.get_running_loop().time() > deadline:
                raise EnvironmentFault(
                    f"etcd did not start: {last_line(self._log)}", where=self.endpoint, mend=f"see {self._log}"
                )
            await asyncio.sleep(RETRY_S)

    async def watch(self) -> None:
        """Starts it again from its data whenever it ends; EnvironmentFault when it cannot start any more."""
        while True:
            assert self._process is not None
            await self._process.wait()
            self.restarts += 1
            self._note(f"etcd ended; starting it again from its data (log: {self._log})")
            await self.start()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self._process is not None:
            await self._process.stop(grace_s=5.0)

    async def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self._tls / "ca.crt"))
        context.load_cert_chain(self._tls / "tls.crt", self._tls / "tls.key")
        request = f"GET /health HTTP/1.1\r\nHost: {self._address}\r\nConnection: close\r\n\r\n".encode()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(self._address, CLIENT_PORT, ssl=context)
                writer.write(request)
                answer = await reader.read()
                writer.close()
                return b'"true"' in answer
        return False


def last_line(log: Path) -> str:
    """The last line of a log that says something, for a person to see at once."""
    if not log.exists():
        return "no output"
    lines = [line for line in log.read_text(errors="replace").splitlines()[-40:] if line.strip()]
    return lines[-1].strip()[-300:] if lines else "no output"

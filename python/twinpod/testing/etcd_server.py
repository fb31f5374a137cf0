"""A real etcd under TLS, started in a folder on free ports, killed and started again at will."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from twinpod.coordination.etcd import EtcdStore
from twinpod.errors import EnvironmentFault, Unreachable
from twinpod.rpc.certificates import Authority, issue, make_authority
from twinpod.rpc.ports import free_ports


class EtcdServer:
    """Life: `start`, `kill` and `start` again any number of times, on the same data and ports; `kill` at the end."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.folder, self.tls = folder, folder / "tls"
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._peer_port = free_ports(2)
        issue(authority or make_authority("etcd"), ["localhost"], ["127.0.0.1"]).write(self.tls)

    @property
    def endpoint(self) -> str:
        """host:port."""
        return f"localhost:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    async def start(self) -> None:
        """Start, and return once it answers. EnvironmentFault when etcd is not installed or does not come up."""
        program = shutil.which("etcd")
        if program is None:
            raise EnvironmentFault("etcd is not installed", mend="apt-get install etcd-server")
        client, peer = f"https://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        with open(self.folder / "etcd.log", "ab") as log:  # noqa: ASYNC230  # a test's loop may wait
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [
                    program,
                    *("--data-dir", str(self.folder / "data")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                    *("--cert-file", str(self.tls / "tls.crt"), "--key-file", str(self.tls / "tls.key")),
                    *("--trusted-ca-file", str(self.tls / "ca.crt"), "--client-cert-auth"),
                    "--unsafe-no-fsync",  # what is killed here is etcd, not the machine; a busy disk delays no answer
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),  # leases then may be as short as 1 s
                ],
                stdout=log,
                stderr=log,
            )
        store = EtcdStore([self.endpoint], self.tls, timeout_s=1.0)
        try:
            async with asyncio.timeout(30):
                while True:
                    with suppress(Unreachable):
                        try:
                            await store.get("/up")
                        except EnvironmentFault as error:
                            if error.retryable:
                                raise
                        return  # a refusal is an answer, too: it asks who we are
        except TimeoutError as error:
            raise EnvironmentFault("etcd did not come up", where=str(self.folder / "etcd.log")) from error
        finally:
            await store.close()

    def kill(self) -> None:
        """SIGKILL; gone on return."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

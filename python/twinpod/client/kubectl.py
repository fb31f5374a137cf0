"""kubectl as a child process: the one file that knows it. It brings the user's own login, contexts and plug-ins."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from twinpod.errors import EnvironmentFault, InputError, Unreachable

CALL_S = 60.0  # one call that answers at once on a healthy cluster
_AWAY = ("was refused", "no such host", "i/o timeout", "TLS handshake timeout", "Unable to connect to the server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """Calls with one context and namespace; empty ones are those of the user's kubeconfig."""

    context: str = ""
    namespace: str = ""

    def json(self, *arguments: str) -> Any:
        """Parsed output of `kubectl ARGUMENTS -o json`."""
        return json.loads(self.text(*arguments, "-o", "json"))

    def text(self, *arguments: str, given: str | None = None, deadline_s: float = CALL_S) -> str:
        """Output of a call. InputError for what is not there or not allowed, Unreachable when the cluster is away."""
        try:
            done = subprocess.run(
                self.command(arguments), input=given, capture_output=True, text=True, timeout=deadline_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"no answer within {deadline_s:.0f} s", where=f"kubectl {arguments[0]}") from error
        if done.returncode:
            raise fault_of(done.stderr, f"kubectl {arguments[0]}")
        return done.stdout

    def stream(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A call whose output is read as it comes; the caller ends it (`with`)."""
        return subprocess.Popen(self.command(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def follow(self, *arguments: str, output: IO[str] | None = None) -> int:
        """A call that writes to this terminal, or to `output`, until it ends; its exit code."""
        return subprocess.run(self.command(arguments), stdout=output, check=False).returncode

    def follow_all(self, calls: Sequence[Sequence[str]]) -> int:
        """Such calls side by side, until all of them end; the worst exit code."""
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(subprocess.Popen(self.command(call))) for call in calls]
            return max(one.wait() for one in running)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The whole command line; EnvironmentFault when there is no kubectl."""
        program = shutil.which("kubectl")
        if program is None:
            raise EnvironmentFault("is not installed", where="kubectl", mend="install it, or put it on PATH")
        chosen = [f"--context={self.context}"] if self.context else []
        chosen += [f"--namespace={self.namespace}"] if self.namespace else []
        return [program, *chosen, *arguments]


def fault_of(said: str, where: str) -> EnvironmentFault | InputError:
    """What kubectl's words mean. Pure."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    words = lines[-1].removeprefix("error: ").removeprefix("Error from server ") if lines else "failed without a word"
    if any(sign in said for sign in _AWAY):
        return Unreachable(words, where=where, mend="check the context: kubectl config get-contexts")
    if "doesn't have a resource type" in said:
        return EnvironmentFault(words, where=where, mend="install Twinpod: kubectl apply -k manifests/default")
    if "(NotFound)" in said or "(Forbidden)" in said or "does not exist" in said:
        return InputError(words, where=where)
    return EnvironmentFault(words, where=where)

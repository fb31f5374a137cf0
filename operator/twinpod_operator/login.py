"""How to reach the API server: from a kubeconfig file, or from the files that the kubelet mounts into a pod."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twinpod.errors import EnvironmentFault, InputError

ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_AGE_S = 60.0  # the kubelet replaces the file well before the token in it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A server and who we are for it. PEM in the byte fields; empty ones are not given."""

    server: str  # https://host:port
    authority: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""
    token_file: Path | None = None
    insecure: bool = False

    def context(self) -> ssl.SSLContext:
        """TLS as client; verifies the server unless the kubeconfig says otherwise."""
        made = ssl.create_default_context(cadata=self.authority.decode() if self.authority else None)
        if self.insecure:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if self.certificate:
            with tempfile.TemporaryDirectory() as folder:  # Python reads certificates from files only
                pem = Path(folder) / "client.pem"
                pem.touch(mode=0o600)
                pem.write_bytes(self.certificate + b"\n" + self.key)
                made.load_cert_chain(pem)
        return made


class Bearer:
    """The token, read again from its file once a minute, as it is replaced there."""

    def __init__(self, login: Login) -> None:
        self._login, self._token, self._read_at = login, login.token, float("-inf")

    def headers(self) -> dict[str, str]:
        """The Authorization header; empty with a client certificate."""
        if self._login.token_file is not None and time.monotonic() - self._read_at > _TOKEN_AGE_S:
            try:
                self._token = self._login.token_file.read_text().strip()
            except OSError as error:
                raise EnvironmentFault(
                    f"the token cannot be read: {error.strerror}", where=str(self._login.token_file)
                ) from error
            self._read_at = time.monotonic()
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


def find_login(environment: dict[str, str], account: Path = ACCOUNT_FOLDER) -> Login:
    """KUBECONFIG, else the pod's own account, else ~/.kube/config; InputError when there is none of them."""
    if path := environment.get("KUBECONFIG"):
        return from_kubeconfig(Path(path.split(os.pathsep)[0]))
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if host and (account / "token").exists():
        shown = f"[{host}]" if ":" in host else host
        return Login(
            server=f"https://{shown}:{port}",
            authority=(account / "ca.crt").read_bytes(),
            token_file=account / "token",
        )
    home = Path(environment.get("HOME", "/")) / ".kube" / "config"
    if home.exists():
        return from_kubeconfig(home)
    raise InputError("no API server is known", where="KUBECONFIG", mend="set it, or run in a pod with an account")


def from_kubeconfig(path: Path) -> Login:
    """The current context of a kubeconfig; certificates and tokens only, no plug-in programs."""
    try:
        document = yaml.safe_load(path.read_text())
        contexts, clusters, users = (_by_name(document[key]) for key in ("contexts", "clusters", "users"))
        context = contexts[document["current-context"]]["context"]
        cluster, user = clusters[context["cluster"]]["cluster"], users[context["user"]]["user"]
        return Login(
            server=cluster["server"].rstrip("/"),
            authority=_pem(cluster, "certificate-authority", path),
            certificate=_pem(user, "client-certificate", path),
            key=_pem(user, "client-key", path),
            token=user.get("token", ""),
            token_file=Path(user["tokenFile"]) if "tokenFile" in user else None,
            insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
        )
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(error.filename or path)) from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise InputError(f"is no kubeconfig that can be used ({error!r})", where=str(path)) from error


def _by_name(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in items}


def _pem(source: dict[str, Any], field: str, kubeconfig: Path) -> bytes:
    if data := source.get(f"{field}-data"):
        return base64.b64decode(data)
    if file := source.get(field):
        return (kubeconfig.parent / str(file)).read_bytes()
    return b""

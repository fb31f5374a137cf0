"""A thin client of the API server for the cluster's own parts: JSON in, JSON out, watches as iterators."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
from tests.cluster.layout import Layout

TIMEOUT_S = 30.0
WATCH_S = 300

Object = dict[str, Any]


class Api:
    """Life: made with the certificate of `user`, one of `identities.CLIENTS`; closed by the process's end."""

    def __init__(self, layout: Layout, user: str) -> None:
        context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        context.load_cert_chain(str(layout.pki / f"{user}.crt"), str(layout.pki / f"{user}.key"))
        self._client = httpx.Client(base_url=layout.server, verify=context, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str) -> Object | None:
        """An object or list; None when it is not there."""
        answer = self._client.get(path)
        return None if answer.status_code == httpx.codes.NOT_FOUND else _body(answer)

    def create(self, path: str, body: Object) -> bool:
        """Whether it was created; False when one of the name is there."""
        answer = self._client.post(path, json=body)
        if answer.status_code == httpx.codes.CONFLICT:
            return False
        _body(answer)
        return True

    def delete(self, path: str) -> None:
        """Delete it; nothing happens when it is not there."""
        answer = self._client.delete(path)
        if answer.status_code != httpx.codes.NOT_FOUND:
            _body(answer)

    def objects(self, path: str) -> Iterator[Object]:
        """All that are there, then each that is added or changed, until the server ends the watch."""
        listed = self.get(path)
        assert listed is not None, path
        yield from listed["items"]
        version = listed["metadata"]["resourceVersion"]
        parameters: dict[str, str] = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        with self._client.stream("GET", path, params=parameters, timeout=WATCH_S + TIMEOUT_S) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED"):
                    yield event["object"]
                elif event["type"] == "ERROR":
                    return


def _body(answer: httpx.Response) -> Object:
    answer.raise_for_status()
    found: Object = answer.json()
    return found

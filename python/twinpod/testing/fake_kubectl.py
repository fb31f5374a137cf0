"""kubectl that answers from a table of resources and remembers what it was asked; no process, no cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from twinpod.client.kubectl import Kubectl


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeKubectl(Kubectl):
    """`items`: what `get KIND` lists, whatever the selector. `asked`: every call; `given`: what was created."""

    items: Mapping[str, Sequence[Mapping[str, Any]]]
    answer: str = ""  # of every call that is no get
    asked: list[tuple[str, ...]] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)

    def text(self, *arguments: str, given: str | None = None, deadline_s: float = 0.0) -> str:
        """See Kubectl."""
        self.asked.append(arguments)
        if given is not None:
            self.given.append(json.loads(given))
        return json.dumps({"items": self.items.get(arguments[1], [])}) if arguments[0] == "get" else self.answer

    def follow(self, *arguments: str, output: IO[str] | None = None) -> int:
        """See Kubectl; succeeds at once."""
        self.asked.append(arguments)
        return 0

    def follow_all(self, calls: Sequence[Sequence[str]]) -> int:
        """See Kubectl; succeeds at once."""
        return max(self.follow(*call) for call in calls)

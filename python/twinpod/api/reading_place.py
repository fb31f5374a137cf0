"""Where a pod can read a job's volumes when its master is gone: with the master's image, on nodes where it could run.

The operator writes it onto the job's ConfigMap, which outlives the pods of a suspended or finished job; the client
reads it there, or from a master's pod while there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinpod.api import names
from twinpod.errors import InputError

FIELDS = ("affinity", "imagePullSecrets", "nodeSelector", "tolerations")  # of a pod's spec


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPlace:
    """What a pod takes over from the master's."""

    image: str
    spec: Mapping[str, Any]  # those of FIELDS that the master's pod has, as they stand there


def place_of(master: Mapping[str, Any]) -> ReadingPlace:
    """The place that a master's pod has, rendered or as the server keeps it."""
    spec = master["spec"]
    kept = {field: spec[field] for field in FIELDS if spec.get(field)}
    return ReadingPlace(image=str(spec["containers"][0]["image"]), spec=kept)


def to_text(place: ReadingPlace) -> str:
    """One line of JSON; the same for the same place."""
    return json.dumps({"image": place.image, "spec": place.spec}, sort_keys=True, separators=(",", ":"))


def from_text(text: str) -> ReadingPlace:
    """The other way; nothing but FIELDS is taken, whoever wrote it. InputError for text that is none of ours."""
    try:
        known = json.loads(text)
        image, spec = known["image"], known["spec"]
        return ReadingPlace(image=str(image), spec={field: spec[field] for field in FIELDS if field in spec})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the annotation {names.ANNOTATION_READER} of its ConfigMap was changed: {text[:80]!r}",
            mend="take it off: the operator writes it again while the job is not finished",
        ) from error

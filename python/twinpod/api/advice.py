"""What is right in a manifest and hardly meant so: told, never refused. Pure."""

from __future__ import annotations

from twinpod.api.types import Resource, RLJob


def advice(resource: Resource) -> tuple[str, ...]:
    """One line each: `field: what it means; what to do`."""
    if not isinstance(resource, RLJob):
        return ()
    spec = resource.spec
    found = []
    if spec.model.dtype == "float32" and spec.hybrid.accelerators > 0:
        found.append(
            "spec.model.dtype: float32 on accelerators takes twice the memory of bfloat16 and several times its time;"
            " write dtype: bfloat16 (main weights stay float32)"
        )
    return tuple(found)

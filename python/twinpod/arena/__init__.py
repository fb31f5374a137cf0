"""The shared-memory file that weights travel through: layout, slots, digests, reading. numpy only.

An arena belongs to one owner (a trainer rank, or a half that fetched a peer's shard). It has two slots of the same
size, is allocated and faulted in once, and its layout never changes during a run. A version is written into the slot
that is not being read, gets its digest, and only then is announced.
"""

from twinpod.arena.file import Arena
from twinpod.arena.layout import ALIGNMENT, PAGE, plan_layout

__all__ = ["ALIGNMENT", "PAGE", "Arena", "plan_layout"]

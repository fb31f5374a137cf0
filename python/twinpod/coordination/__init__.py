"""What the processes of a job tell each other through etcd: a small key-value port, its two adapters, the key names.

Small values only (versions, digests, addresses, statuses; nothing above 100 kB). etcd going away stops nothing that
is running (design 8.6): every call then raises `Unreachable`, watches go quiet, and both come back by themselves.
"""

from twinpod.coordination.store import Change, Entry, Store

__all__ = ["Change", "Entry", "Store"]

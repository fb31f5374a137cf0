"""Who may read and write what in the platform's etcd: one user and one role a job, limited to the job's prefix.

With authentication on, etcd takes the common name of a client's certificate as its user; nobody has a password. The
user `root` is the operator's. Everything here may be repeated.
"""

from __future__ import annotations

from typing import Any

from aetcd import rpc
from aetcd.utils import prefix_range_end

from twinpod.coordination.etcd import CALL_TIMEOUT_S, EtcdStore
from twinpod.errors import EnvironmentFault

ROOT = "root"


class Access:
    """Users and roles. Life: as long as its store."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store

    async def demand(self) -> None:
        """Turn authentication on; from then on only certificates with a user's name are heard."""
        await self._do("UserAdd", _user(ROOT), "already exists")
        await self._do("RoleAdd", rpc.AuthRoleAddRequest(name=ROOT), "already exists")
        await self._do("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=ROOT, role=ROOT))
        await self._do("AuthEnable", rpc.AuthEnableRequest())

    async def admit(self, user: str, prefix: str) -> None:
        """The user may read, write and watch the keys below the prefix, and nothing else."""
        end = prefix_range_end(prefix.encode())
        permission = rpc.Permission(permType=rpc.Permission.READWRITE, key=prefix.encode(), range_end=end)
        await self._do("UserAdd", _user(user), "already exists")
        await self._do("RoleAdd", rpc.AuthRoleAddRequest(name=user), "already exists")
        await self._do("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name=user, perm=permission))
        await self._do("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=user, role=user))

    async def dismiss(self, user: str) -> None:
        """User and role are gone."""
        await self._do("UserDelete", rpc.AuthUserDeleteRequest(name=user), "not found")
        await self._do("RoleDelete", rpc.AuthRoleDeleteRequest(role=user), "not found")

    async def _do(self, method: str, request: Any, fine: str = "\0") -> None:
        """One call; a refusal that says `fine` means that it was done before."""
        try:
            await self._store.call(lambda client: getattr(client.authstub, method)(request, timeout=CALL_TIMEOUT_S))
        except EnvironmentFault as error:
            if error.retryable or fine not in error.what:
                raise


def _user(name: str) -> Any:
    return rpc.AuthUserAddRequest(name=name, options=rpc.UserAddOptions(no_password=True))

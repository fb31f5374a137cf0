"""etcd's alarm NOSPACE, as a database that has reached its quota raises it."""

from __future__ import annotations

from aetcd import rpc

from twinpod.coordination.etcd import EtcdStore


async def no_space(store: EtcdStore, *, on: bool) -> None:
    """Raise the alarm, or disarm it."""
    action = rpc.AlarmRequest.ACTIVATE if on else rpc.AlarmRequest.DEACTIVATE

    async def act(client: object) -> None:
        stub = rpc.MaintenanceStub(client.channel)  # type: ignore[attr-defined]
        status = await stub.Status(rpc.StatusRequest(), timeout=5)
        await stub.Alarm(
            rpc.AlarmRequest(action=action, memberID=status.header.member_id, alarm=rpc.NOSPACE), timeout=5
        )

    await store.call(act)

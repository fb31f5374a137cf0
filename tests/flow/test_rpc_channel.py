"""Channels and servers over real sockets: who is heard, what an error becomes, what a deadline does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from twinpod.errors import EngineFault, EnvironmentFault, InputError, ProtocolError, StaleEpoch, Unreachable
from twinpod.rpc import renewal
from twinpod.rpc.certificates import Authority, issue, make_authority
from twinpod.rpc.channel import (
    RpcServer,
    ask,
    ask_blocking,
    ask_stream,
    ask_stream_blocking,
    blocking_channel,
    client_channel,
    listening_host,
    serve,
)
from twinpod.rpc.v1 import half_pb2, half_pb2_grpc, master_pb2, master_pb2_grpc


class Half(half_pb2_grpc.HalfServicer):
    async def Execute(self, request: half_pb2.Command, context: Any) -> half_pb2.Reply:
        if request.key == "hang":
            await asyncio.Event().wait()
        if request.key == "bug":
            raise ValueError("a bug")
        raise StaleEpoch("old", where="é", mend="end this one")

    async def Status(self, request: half_pb2.StatusRequest, context: Any) -> half_pb2.HalfStatus:
        return half_pb2.HalfStatus(pod="p")


class Master(master_pb2_grpc.MasterServicer):
    async def FetchBatch(self, request: master_pb2.BatchRequest, context: Any) -> AsyncIterator[master_pb2.BatchPart]:
        yield master_pb2.BatchPart(data=bytes(request.iteration))
        yield master_pb2.BatchPart(data=bytes(request.iteration))
        if request.epoch:
            raise EngineFault("in the middle")


@pytest.fixture
def authority() -> Authority:
    return make_authority("job")


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> Path:
    issue(authority, ["localhost"], ["127.0.0.1"]).write(tmp_path / "tls")
    return tmp_path / "tls"


@pytest.fixture
async def server(tls: Path) -> AsyncIterator[RpcServer]:
    running = await serve([Half(), Master()], "127.0.0.1:0", tls)
    yield running
    await running.stop()


async def status(port: int, tls: Path, host: str = "localhost") -> half_pb2.HalfStatus:
    async with client_channel(f"{host}:{port}", tls) as channel:
        stub = half_pb2_grpc.HalfStub(channel)
        return await ask(stub.Status, half_pb2.StatusRequest(), timeout=5, where="half")


async def execute(port: int, tls: Path, key: str, timeout: float = 5) -> half_pb2.Reply:
    async with client_channel(f"localhost:{port}", tls) as channel:
        stub = half_pb2_grpc.HalfStub(channel)
        return await ask(stub.Execute, half_pb2.Command(key=key), timeout=timeout, where="half")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_peer_is_reached_by_name_and_by_address(server: RpcServer, tls: Path, host: str) -> None:
    assert (await status(server.port, tls, host)).pod == "p"


async def test_a_twinpod_error_is_raised_at_the_caller_as_itself(server: RpcServer, tls: Path) -> None:
    with pytest.raises(StaleEpoch, match=r"^é: old; end this one$"):
        await execute(server.port, tls, "x")


async def test_a_bug_is_no_retryable_error(server: RpcServer, tls: Path) -> None:
    with pytest.raises(ProtocolError, match=r"INTERNAL.*ValueError: a bug") as caught:
        await execute(server.port, tls, "bug")
    assert not caught.value.retryable


async def test_a_deadline_is_unreachable(server: RpcServer, tls: Path) -> None:
    with pytest.raises(Unreachable, match="half: did not answer before the deadline"):
        await execute(server.port, tls, "hang", timeout=0.2)


async def test_nobody_at_home_is_unreachable_at_once(tls: Path) -> None:
    with pytest.raises(Unreachable, match="half: does not answer"):
        await status(1, tls)


async def test_a_call_without_a_deadline_is_refused(server: RpcServer, tls: Path) -> None:
    async with client_channel(f"localhost:{server.port}", tls) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="every call needs a deadline"):
            await half_pb2_grpc.HalfStub(channel).Status(half_pb2.StatusRequest())


async def test_a_stream_comes_whole_or_with_its_error(server: RpcServer, tls: Path) -> None:
    async with client_channel(f"localhost:{server.port}", tls) as channel:
        method = master_pb2_grpc.MasterStub(channel).FetchBatch
        whole = ask_stream(method, master_pb2.BatchRequest(iteration=4), timeout=5, where="master")
        assert [len(part.data) async for part in whole] == [4, 4]
        with pytest.raises(EngineFault, match="in the middle"):
            async for _ in ask_stream(method, master_pb2.BatchRequest(epoch=1), timeout=5, where="master"):
                pass


async def test_a_rank_without_an_event_loop_asks_as_well(server: RpcServer, tls: Path) -> None:
    def ranks() -> tuple[str, int]:
        with blocking_channel(f"localhost:{server.port}", tls) as channel:
            half, master = half_pb2_grpc.HalfStub(channel), master_pb2_grpc.MasterStub(channel)
            with pytest.raises(StaleEpoch):
                ask_blocking(half.Execute, half_pb2.Command(), timeout=5, where="half")
            told = ask_blocking(half.Status, half_pb2.StatusRequest(), timeout=5, where="half")
            parts = ask_stream_blocking(master.FetchBatch, master_pb2.BatchRequest(), timeout=5, where="master")
            broken = ask_stream_blocking(master.FetchBatch, master_pb2.BatchRequest(epoch=1), timeout=5, where="master")
            with pytest.raises(EngineFault, match="in the middle"):
                list(broken)
            return told.pod, len(list(parts))

    assert await asyncio.to_thread(ranks) == ("p", 2)


async def test_a_stranger_is_not_heard(server: RpcServer, tls: Path, tmp_path: Path) -> None:
    issue(make_authority("stranger"), ["localhost"]).write(tmp_path / "stranger")
    (tmp_path / "stranger" / "ca.crt").write_bytes((tls / "ca.crt").read_bytes())
    with pytest.raises(Unreachable):
        await status(server.port, tmp_path / "stranger")


async def test_a_server_with_another_name_is_not_trusted(authority: Authority, tls: Path, tmp_path: Path) -> None:
    issue(authority, ["elsewhere"]).write(tmp_path / "elsewhere")
    running = await serve([Half()], "127.0.0.1:0", tmp_path / "elsewhere")
    with pytest.raises(Unreachable):
        await status(running.port, tls)
    await running.stop()


async def test_new_certificates_are_used_for_new_connections(server: RpcServer, tls: Path, tmp_path: Path) -> None:
    issue(make_authority("next"), ["localhost"], ["127.0.0.1"]).write(tmp_path / "next")
    with pytest.raises(Unreachable):
        await status(server.port, tmp_path / "next")
    for name in ("ca.crt", "tls.key", "tls.crt"):
        (tmp_path / "next" / name).rename(tls / name)
    assert (await status(server.port, tls)).pod == "p"


async def test_a_taken_port_is_one_line(server: RpcServer, tls: Path) -> None:
    with pytest.raises(EnvironmentFault, match=rf"127\.0\.0\.1:{server.port}: the port cannot be bound"):
        await serve([Half()], f"127.0.0.1:{server.port}", tls)


async def test_a_missing_certificate_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tls\.crt: No such file"):
        await serve([Half()], "127.0.0.1:0", tmp_path)


@pytest.mark.parametrize("service", ["", "twinpod.rpc.v1.Half", "twinpod.rpc.v1.Master"])
async def test_health_is_told_by_service(server: RpcServer, tls: Path, service: str) -> None:
    async with client_channel(f"localhost:{server.port}", tls) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(("address", "host"), [("127.0.0.9", "127.0.0.9"), ("no-such.invalid", "0.0.0.0")])
def test_a_loopback_address_is_listened_on_alone(address: str, host: str) -> None:
    assert listening_host(address) == host


async def test_a_channel_that_was_made_before_takes_new_certificates_for_new_calls(
    server: RpcServer, tls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LOOK_S", 0.0)
    issue(make_authority("next"), ["localhost"], ["127.0.0.1"]).write(tmp_path / "next")
    blocking = blocking_channel(f"localhost:{server.port}", tls)
    async with client_channel(f"localhost:{server.port}", tls) as channel:
        half, slow = half_pb2_grpc.HalfStub(channel), half_pb2_grpc.HalfStub(blocking)
        request = half_pb2.StatusRequest()

        async def both() -> list[str]:
            told = await asyncio.to_thread(ask_blocking, slow.Status, request, timeout=5, where="half")
            return [(await ask(half.Status, request, timeout=5, where="half")).pod, told.pod]

        assert await both() == ["p", "p"]
        for name in ("ca.crt", "tls.key", "tls.crt"):
            (tmp_path / "next" / name).rename(tls / name)
        assert await both() == ["p", "p"], "the server answers only to the new authority's certificates now"
    blocking.close()

"""Shards between halves over real gRPC with mutual TLS: broken off, resumed, from another, lied about, overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from twinpod.arena import Arena
from twinpod.checkpoint.carriers.grpc import GrpcCarrier, shard_service
from twinpod.checkpoint.fetch import Stager, Staging
from twinpod.checkpoint.layouts import Layouts
from twinpod.checkpoint.shard_offers import MESSAGE_BYTES, ShardOffers
from twinpod.checkpoint.verify import verify_version
from twinpod.errors import TwinpodError, Unreachable, WrongVersion
from twinpod.records.weights import ServeRequest, ShardRequest, ShardSource, WeightVersion
from twinpod.rpc.certificates import issue, make_authority
from twinpod.rpc.channel import RpcServer, serve
from twinpod.testing.weights import order_of, small_version, spoil

ROWS = 3 * MESSAGE_BYTES // 64  # one shard: three messages and a little
HOST = "127.0.0.1"  # the receiver's; sources are called localhost, so that their shards count as away


class Peer(ShardOffers):
    """A source that a test can interrupt: `at` is called when so many bytes of one stream have been sent."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[int, Callable[[], object]] = {}
        self.asked: list[int] = []
        self.server: RpcServer | None = None
        self._death: asyncio.Task[None] | None = None

    async def die(self) -> None:
        """Its server ends at once; for the stream that calls this, with the rest of it unsent."""
        if self._death is None and self.server is not None:
            self._death = asyncio.create_task(self.server.stop())
        if self._death is not None:
            await asyncio.shield(self._death)

    @property
    def address(self) -> str:
        """As others reach it."""
        assert self.server is not None
        return f"localhost:{self.server.port}"

    async def read(self, request: ShardRequest) -> AsyncGenerator[bytes, None]:
        """See ShardOffers."""
        self.asked.append(request.begin)
        sent = request.begin
        async for message in super().read(request):
            yield message
            sent += len(message)
            if act := self.at.pop(sent, None):
                found = act()
                if asyncio.isfuture(found) or asyncio.iscoroutine(found):
                    await found


class Scene:
    """Peers with folders of their own and one receiver."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder, self._stack, self.tls = folder, stack, folder / "tls"
        authority = make_authority("job")
        issue(authority, ["localhost"], [HOST]).write(self.tls)
        self.offers = ShardOffers()
        (folder / "own").mkdir()
        self.stager = self.fresh_stager()

    def fresh_stager(self) -> Stager:
        """As after a start of the half's container."""
        stager = Stager(self.folder / "own", f"{HOST}:7402", GrpcCarrier(self.tls), self.offers, stall_s=5.0)
        self._stack.push_async_callback(stager.close)
        return stager

    def on_close(self, carrier: GrpcCarrier) -> None:
        """Ends with the scene."""
        self._stack.push_async_callback(carrier.close)

    async def peer(self) -> Peer:
        """One more."""
        peer = Peer()
        peer.server = await serve([shard_service(peer)], "localhost:0", self.tls)
        self._stack.push_async_callback(peer.die)
        return peer

    def publish(self, version: int, *peers: Peer, name: str = "peer", ranks: int = 1) -> WeightVersion:
        """A version in a folder, offered by all; its records name the first."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        made = small_version(folder, version, ranks=ranks, address=peers[0].address, rows=ROWS * ranks)
        for peer in peers:
            peer.offer(version, made.shards)
        return made

    async def stage(self, version: WeightVersion, *peers: Peer) -> Staging:
        """With all peers named as sources, in this order of preference."""
        addresses = tuple(peer.address for peer in peers)
        sources = tuple(ShardSource(owner=shard.layout.owner, addresses=addresses) for shard in version.shards)
        return await self.stager.stage(ServeRequest(weights=version, sources=sources))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(tmp_path, stack)


def size_of(version: WeightVersion) -> int:
    """Bytes that travel."""
    return sum(max(part.offset + part.nbytes for part in shard.layout.parts) for shard in version.shards)


def check(staging: Staging, version: WeightVersion) -> None:
    """Every shard is here and right."""
    assert staging.version.digest == version.digest
    assert all("/own/fetched-" in shard.path for shard in staging.version.shards)
    verify_version(staging.version)


def first_of(version: WeightVersion, *peers: Peer) -> tuple[Peer, Peer]:
    """The source that is asked first, and the other."""
    from twinpod.checkpoint.plan import plan_fetch

    addresses = tuple(peer.address for peer in peers)
    sources = tuple(ShardSource(owner=shard.layout.owner, addresses=addresses) for shard in version.shards)
    (transfer,) = plan_fetch(ServeRequest(weights=version, sources=sources), HOST)
    order = [source.address for source in transfer.sources]
    one, other = sorted(peers, key=lambda peer: order.index(peer.address))
    return one, other


async def test_two_shards_come_whole_and_their_bytes_are_counted(scene: Scene) -> None:
    peer = await scene.peer()
    version = scene.publish(1, peer, ranks=2)
    staging = await scene.stage(version, peer)
    check(staging, version)
    assert staging.nbytes == size_of(version) == peer.bytes_served
    assert staging.seconds > 0


async def test_the_same_version_again_costs_nothing_and_the_next_one_goes_into_the_other_slot(scene: Scene) -> None:
    peer = await scene.peer()
    one, two = scene.publish(1, peer), scene.publish(2, peer)
    await scene.stage(one, peer)
    assert (await scene.stage(one, peer)).nbytes == 0
    staging = await scene.stage(two, peer)
    check(staging, two)
    assert staging.version.shards[0].slot == 0
    check(await scene.stage(one, peer), one)  # still in its slot


async def test_a_new_life_of_the_half_finds_what_the_last_one_fetched(scene: Scene) -> None:
    peer = await scene.peer()
    version = scene.publish(1, peer)
    await scene.stage(version, peer)
    scene.stager = scene.fresh_stager()
    staging = await scene.stage(version, peer)
    check(staging, version)
    assert staging.nbytes == 0


async def test_a_half_that_lost_its_arena_fetches_again(scene: Scene) -> None:
    peer = await scene.peer()
    version = scene.publish(1, peer)
    path = Path((await scene.stage(version, peer)).version.shards[0].path)
    path.unlink()
    scene.stager = scene.fresh_stager()
    staging = await scene.stage(version, peer)
    check(staging, version)
    assert staging.nbytes == size_of(version)


async def test_a_source_that_dies_in_the_middle_is_replaced_and_the_other_goes_on_behind_its_bytes(
    scene: Scene,
) -> None:
    one, other = await scene.peer(), await scene.peer()
    version = scene.publish(1, one, other)
    first, second = first_of(version, one, other)
    first.at[MESSAGE_BYTES] = first.die
    staging = await scene.stage(version, one, other)
    check(staging, version)
    assert first.asked == [0]
    assert second.asked == [MESSAGE_BYTES]
    assert staging.nbytes == size_of(version)


async def test_a_staging_that_is_cut_goes_on_where_it_stopped(scene: Scene) -> None:
    peer = await scene.peer()
    version = scene.publish(1, peer)
    cut = asyncio.get_running_loop().create_future()
    peer.at[2 * MESSAGE_BYTES] = lambda: cut.done() or cut.set_result(None)  # type: ignore[func-returns-value]
    task = asyncio.create_task(scene.stage(version, peer))
    await cut
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    staging = await scene.stage(version, peer)
    check(staging, version)
    assert peer.asked[0] == 0
    assert staging.nbytes == size_of(version) - peer.asked[-1]


async def test_a_source_with_wrong_bytes_is_refused_and_another_one_is_right(scene: Scene) -> None:
    one, other = await scene.peer(), await scene.peer()
    version = scene.publish(1, one, other)
    liar, honest = first_of(version, one, other)
    liar.clear_slot(1)
    lie = scene.publish(1, liar, name="lie")
    spoil(lie)
    staging = await scene.stage(version, one, other)
    check(staging, version)
    assert honest.asked == [0]
    assert staging.nbytes == 2 * size_of(version)


async def test_nobody_with_the_right_bytes_is_a_retryable_error_with_both_digests_and_nothing_is_served(
    scene: Scene,
) -> None:
    liar = await scene.peer()
    version = scene.publish(1, liar)
    spoil(version)
    with pytest.raises(Unreachable, match=r"shard hybrid-0/rank-0.*digest xxh3:\w+, xxh3:\w+ was published") as caught:
        await scene.stage(version, liar)
    assert caught.value.retryable
    with pytest.raises(WrongVersion):
        scene.offers.find(_request(version))


async def test_a_slot_that_is_written_again_while_it_is_streamed_ends_the_stream_and_another_source_is_taken(
    scene: Scene,
) -> None:
    one, other = await scene.peer(), await scene.peer()
    version = scene.publish(1, one, other)
    first, second = first_of(version, one, other)
    first.at[MESSAGE_BYTES] = lambda: first.clear_slot(1)
    check(await scene.stage(version, one, other), version)
    assert second.asked


async def test_a_slot_that_another_process_writes_meanwhile_is_found_by_its_digest(scene: Scene) -> None:
    one, other = await scene.peer(), await scene.peer()
    version = scene.publish(1, other, name="copy")
    first, second = first_of(version, one, other)
    first.clear_slot(1)
    own = scene.publish(1, first)

    def overwrite() -> None:
        with Arena.open(Path(own.shards[0].path), own.shards[0].layout, writable=True) as arena:
            arena.slot(1)[-(1 << 20) :] = 1

    second.offer(1, version.shards)
    first.at[MESSAGE_BYTES] = overwrite
    check(await scene.stage(version, one, other), version)
    assert second.asked[-1] == 0


async def test_a_source_that_does_not_have_it_yet_is_asked_again(scene: Scene) -> None:
    peer = await scene.peer()
    version = scene.publish(1, peer)
    peer.clear_slot(1)
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        peer.offer(1, version.shards)
        await asyncio.sleep(seconds)

    scene.stager = Stager(scene.folder / "own", f"{HOST}:7402", GrpcCarrier(scene.tls), scene.offers, pause=pause)
    check(await scene.stage(version, peer), version)
    assert len(pauses) == 1
    await scene.stager.close()


async def test_whoever_fetched_a_shard_serves_it(scene: Scene) -> None:
    peer, relay = await scene.peer(), await scene.peer()
    version = scene.publish(1, peer)
    staging = await scene.stage(version, peer)
    relay.offer(1, staging.version.shards)
    await peer.die()
    (scene.folder / "second").mkdir()
    second = Stager(scene.folder / "second", f"{HOST}:7403", GrpcCarrier(scene.tls), ShardOffers())
    sources = (ShardSource(owner=version.shards[0].layout.owner, addresses=(relay.address,)),)
    found = await second.stage(ServeRequest(weights=version, sources=sources))
    verify_version(found.version)
    await second.close()
    assert scene.offers.find(_request(version)).path == staging.version.shards[0].path


async def test_a_stranger_without_a_certificate_of_the_job_gets_no_weights(scene: Scene) -> None:
    peer = await scene.peer()
    version = scene.publish(1, peer)
    issue(make_authority("other"), ["localhost"], [HOST]).write(scene.folder / "stranger")
    carrier = GrpcCarrier(scene.folder / "stranger")
    with pytest.raises(TwinpodError):
        await anext(carrier.stream(_request(version), peer.address, 5.0))
    await carrier.close()
    assert peer.asked == []


def _request(version: WeightVersion) -> ShardRequest:
    shard = version.shards[0]
    return ShardRequest(
        owner=shard.layout.owner,
        version=version.version,
        digest=shard.digest,
        slot_bytes=shard.layout.slot_bytes,
        begin=0,
        end=shard.layout.slot_bytes,
    )


async def test_a_layout_is_asked_for_once_and_of_whoever_has_it(scene: Scene) -> None:
    first, second = await scene.peer(), await scene.peer()
    version = scene.publish(1, first, second, ranks=2)
    named = tuple(ShardSource(owner=shard.layout.owner, addresses=(second.address,)) for shard in version.shards)
    order = order_of(version, named)
    layouts, carrier = Layouts(HOST), GrpcCarrier(scene.tls)
    scene.on_close(carrier)
    assert layouts.served(order) is None
    await first.die()
    serving = await layouts.ask(order, carrier)
    assert serving == ServeRequest(weights=version, sources=named)
    await second.die()
    later = order_of(scene.publish(2, first, second, ranks=2), named)
    assert layouts.served(later) is not None
    with pytest.raises(Unreachable, match=r"version 2, shard hybrid-0/rank-0: its layout could not be had: localhost"):
        await Layouts(HOST).ask(later, carrier)


async def test_a_layout_that_is_not_what_was_asked_for_is_not_believed(scene: Scene) -> None:
    liar = await scene.peer()
    version = scene.publish(1, liar)
    order = order_of(version)
    liar.layout = lambda digest: b'{"owner":"","slot_bytes":4096,"parts":[]}'  # type: ignore[method-assign]
    carrier = GrpcCarrier(scene.tls)
    scene.on_close(carrier)
    with pytest.raises(Unreachable, match=r"the layout has the digest xxh3:\w+, xxh3:\w+ was asked for"):
        await Layouts(HOST).ask(order, carrier)

"""The master's process: `python -m twinpod.master`. Wiring only.

Exit codes are in `twinpod/errors.py`. What was committed is kept in every case.
"""

from __future__ import annotations

import twinpod.process_one  # noqa: F401  # first, see there

# isort: split
import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from twinpod.api import names
from twinpod.api.environment import Environment, read_environment
from twinpod.api.load import load_manifest
from twinpod.api.model_folder import write_model_folder
from twinpod.api.types import RLJob
from twinpod.coordination.etcd import EtcdStore
from twinpod.coordination.keys import Keys
from twinpod.errors import EXIT_RETRY, EXIT_STALE, EXIT_STOPPED, EnvironmentFault, InputError, StaleEpoch, TwinpodError
from twinpod.master import books_data, limits
from twinpod.master import books_read as read
from twinpod.master.archiving import Archive
from twinpod.master.batch_server import BatchServer
from twinpod.master.books import FILE, Books
from twinpod.master.conductor import Conductor, Parts
from twinpod.master.dispatcher import Dispatcher
from twinpod.master.halves import Halves
from twinpod.master.health import Health
from twinpod.master.judges import open_scorer
from twinpod.master.progress import Reporter
from twinpod.master.prompts import PromptSource
from twinpod.master.registry import Registry
from twinpod.master.rewards import Judge
from twinpod.master.service import GrpcHalf, MasterService
from twinpod.master.settings import identity_of, settings_of
from twinpod.master.sinks import AsyncBooks
from twinpod.master.takeover import leave_when_superseded, take_books
from twinpod.master.worker_group import WorkerGroup
from twinpod.records.model_shape import ModelShape
from twinpod.rpc.channel import listening_host, serve
from twinpod.sampling.datasets import open_dataset
from twinpod.sampling.tokens import Tokenizer, build_prompts, divide
from twinpod.telemetry import log as logs
from twinpod.telemetry.prometheus import exposition
from twinpod.telemetry.tensorboard import BoardFiles

log = logging.getLogger("twinpod.master")

STREAMS = 4  # ranks whose samples are read from the books at the same time; the others wait in turn
LEAVE_SHARE = 0.75  # of the grace; what is left is for the end of everything else


def exit_code(error: TwinpodError) -> int:
    """What a failure means for whoever starts the master again; see the module. Pure."""
    if isinstance(error, InputError):
        return error.exit_code
    if isinstance(error, StaleEpoch):
        return EXIT_STALE
    if isinstance(error, EnvironmentFault) and not error.retryable:
        return error.exit_code
    return EXIT_RETRY


async def run(job: RLJob, environment: Environment, shape: ModelShape) -> int:
    """Wire everything, conduct the run, let go of everything."""
    tokenizer = Tokenizer(environment.model_folder)
    limits.check_vocabulary(shape, tokenizer.size)
    dataset = open_dataset(job.spec.dataset, job.spec.seed)
    data = job.spec.dataset
    everything = build_prompts(dataset, data.template, tokenizer, special=data.add_special_tokens)
    longest = limits.longest_of(everything, dataset.items)
    limits.check_prompts(job, longest, [limits.limits_of(shape, job.spec.hybrid.inference)])
    keys: dict[int, int] = {}
    settings = settings_of(job, tokenizer.stop_ids)
    host = listening_host(environment.address)
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(ThreadPoolExecutor(1, "judge"))
        scorer = await open_scorer(job.spec, keys, thread, stack)
        store = EtcdStore(environment.etcd, environment.etcd_tls)
        stack.push_async_callback(store.close)
        registry = Registry(store, Keys(namespace=environment.namespace, job_uid=environment.job_uid), asyncio.sleep)
        books = await take_books(environment.state, identity_of(job), registry, asyncio.sleep)
        stack.callback(books.close)
        known = books_data.take(books, dataset)
        if over(books, settings.iterations):
            log.info("the run has succeeded before; nothing is left to do")
            return 0
        parts = dataset.parts(known[0].count)
        prompts, held_out = divide(everything, parts)
        keys.update(dataset.keys(parts))
        async_books = AsyncBooks(books, stack.enter_context(ThreadPoolExecutor(1, "books")))
        judge = Judge(scorer, tokenizer.decode, settings.repeat_penalty, thread)
        halves = Halves(lambda address: GrpcHalf(address, environment.tls), asyncio.sleep, time.monotonic)
        dispatcher = Dispatcher(time.monotonic)
        workers = WorkerGroup(registry, halves, asyncio.sleep, replicas=settings.hybrid_replicas, lost=dispatcher.lose)
        reporter = Reporter(registry, async_books, time.time, settings.iterations)
        curves = BoardFiles(environment.snapshots / "tensorboard")
        stack.callback(curves.close)
        health = Health(host, names.MASTER_HEALTH_PORT, lambda: metrics(job.metadata.name, reporter, environment.state))
        health.start()
        stack.callback(health.stop)
        batches = BatchServer(environment.state / FILE, stack.enter_context(ThreadPoolExecutor(STREAMS, "batches")))
        server = await serve([MasterService(dispatcher, batches)], f"{host}:{names.MASTER_PORT}", environment.tls)
        stack.push_async_callback(server.stop, 1.0)
        wired = Parts(
            settings=settings,
            async_books=async_books,
            registry=registry,
            workers=workers,
            dispatcher=dispatcher,
            batches=batches,
            archive=Archive(async_books, environment.snapshots, settings.keep_iterations),
            source=PromptSource(prompts, held_out, books_data.uniform(dataset, known)),
            judge=judge,
            reporter=reporter,
            snapshots=environment.snapshots,
            committed=curves.write,
            clock=time.monotonic,
            wall=time.time,
        )
        conductor = Conductor(wired)
        watching = leave_when_superseded(registry, lambda: conductor.epoch, asyncio.sleep)
        return await conduct(conductor, reporter, watching, LEAVE_SHARE * environment.grace_s)


async def conduct(
    conductor: Conductor, reporter: Reporter, watching: Coroutine[None, None, None], leave_s: float
) -> int:
    """Run to the end, until SIGTERM, or until `watching` raises; says in the books how it ended.

    SIGTERM lets the conductor leave, for `leave_s` seconds at most; the second one ends it where it stands.
    """
    loop = asyncio.get_running_loop()
    work, telling = loop.create_task(conductor.run()), loop.create_task(reporter.tell_for_ever())
    watch = loop.create_task(watching)

    def stop() -> None:
        if conductor.leave():
            loop.call_later(leave_s, work.cancel)
        else:
            work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await watch
        return 0 if await work else await stopped(reporter)
    except asyncio.CancelledError:
        return await stopped(reporter)
    except TwinpodError as error:
        code = exit_code(error)
        log.error("the run stops", extra={"why": error.line(), "exit_code": code})  # noqa: TRY400  # one line, no traceback
        if code != EXIT_STALE:
            await reporter.phase(
                "stopped", state="Interrupted" if code == EXIT_RETRY else "Failed", message=error.line()
            )
        print(f"twinpod.master: {error.line()}", file=sys.stderr)
        return code
    finally:
        for task in (telling, watch):
            task.cancel()
        await asyncio.gather(telling, watch, return_exceptions=True)


async def stopped(reporter: Reporter) -> int:
    """Told to stop: what the books say of it, and the exit code."""
    kept = not reporter.done or bool(reporter.done[-1].snapshot)
    log.info("told to stop; the same command goes on from the last %s", "commit" if kept else "snapshot")
    await reporter.phase("stopped", state="Interrupted")
    return EXIT_STOPPED


def over(books: Books, iterations: int) -> bool:
    """The run in these books has come to its end."""
    done = read.iterations(books.connection)
    return bool(done) and done[-1].iteration >= iterations and read.meta(books.connection, "state", "") == "Succeeded"


def metrics(job: str, reporter: Reporter, state: Path) -> str:
    """Prometheus text; counters are read over a connection of their own."""
    db = read.open_read_only(state / FILE)
    try:
        return exposition(job, reporter.now, read.counters(db))
    finally:
        db.close()


def main(arguments: list[str] | None = None) -> int:
    """See the module for exit codes."""
    parser = argparse.ArgumentParser(prog="twinpod.master", description="the central master of one job")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--log-json", action="store_true", help="logs as JSON instead of logfmt")
    asked = parser.parse_args(arguments)
    try:
        environment = read_environment()
        logs.set_up(job=environment.job_name, pod=environment.pod, verbose=asked.verbose, as_json=asked.log_json)
        sys.path.extend(environment.modules)
        job = load_manifest(environment.job_file)
        environment.run.mkdir(parents=True, exist_ok=True)
        environment.snapshots.mkdir(parents=True, exist_ok=True)
        shape = limits.check_model(job)
        write_model_folder(job, environment.model_folder)
        code = asyncio.run(run(job, environment, shape))
    except TwinpodError as error:
        print(f"twinpod.master: {error.line()}", file=sys.stderr)
        return exit_code(error)
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a thread that hangs must not keep a finished master alive

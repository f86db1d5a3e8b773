"""Originals on the workers of a Dask cluster: groups of wanted rows come in, rows come out as they are computed.

All edits of an original are one task, so they meet the session that has painted it. A worker sends each row as soon as
it has it. If a worker dies, Dask runs its task again on another one; rows that come a second time are counted.
"""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.measured import Job, Wanted, measured
from bench.rows import Row
from bench.triples import Original
from sparsegen.errors import InputError

CONNECTING = 20
"""Seconds to wait for the scheduler."""
WAITING = 10
"""Seconds without news after which it is looked whether there are workers."""
DEATHS = 20
"""Workers that may die of one task before it is given up; Dask's own number is 3."""

_ONE = threading.Lock()
"""One original at a time in a worker's process, whatever its number of threads: edits are timed."""


def measured_on(
    address: str, job: Job, groups: Sequence[tuple[Original, Wanted]], say: Callable[[str], None]
) -> Iterator[Row | str]:
    """The rows and lines of `measured` for every group, in the order in which they come; each row once.

    Parameters
    ----------
    address
        The scheduler's: tcp://HOST:PORT. Its workers need this package and the files under the same paths.
    say
        Takes a line about the workers.

    Raises
    ------
    InputError
        Dask is not installed; the scheduler cannot be reached or is lost; it or a worker misses a package.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError(f"--workers: {error}; pip install 'sparsegen[cluster]'") from None
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)  # one line of ours tells what is wrong
    try:
        client = distributed.Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--workers {address}: no scheduler answers ({error}); start one: python -m dask scheduler"
        ) from None
    with client:
        try:
            yield from _followed(client, address, job, groups, say)
        except ModuleNotFoundError as error:
            raise InputError(
                f"--workers: the scheduler or a worker misses a package ({error}); start both in the checkout: "
                f"python -m dask scheduler, python -m dask worker {address}"
            ) from None


def _followed(
    client: Any,
    address: str,
    job: Job,
    groups: Sequence[tuple[Original, Wanted]],
    say: Callable[[str], None],
) -> Iterator[Row | str]:
    import distributed

    topic = f"sparsegen-{uuid.uuid4()}"
    # (whether it is a task that is done, that task or an item that a worker sent)
    inbox: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    client.subscribe_topic(topic, lambda event: inbox.put((False, event[1])))
    client.run_on_scheduler(_allow)
    idle = False
    while not _workers(client):
        try:
            client.wait_for_workers(1, timeout=WAITING)
        except distributed.TimeoutError:
            _check_running(client, address)
            if not idle:
                say(_no_worker(address))
            idle = True
    # a task that a worker cannot read would end it, then the next one
    for worker, error in client.run(_present, on_error="return").items():
        if "ModuleNotFoundError" in repr(error):
            raise ModuleNotFoundError(f"{worker}: {error}")
    # no two runs share a key
    keys = {f"{topic}-{number}": original for number, (original, _) in enumerate(groups)}
    futures = [
        client.submit(_task, job, original, list(wanted), topic, key=key, pure=False)
        for key, (original, wanted) in zip(keys, groups, strict=True)
    ]
    for future in futures:
        future.add_done_callback(lambda done: inbox.put((True, done)))
    left, seen, sent, again = len(futures), set[str](), set[str](), 0
    while left:
        try:
            is_done, item = inbox.get(timeout=WAITING)
        except queue.Empty:
            _check_running(client, address)
            if not _workers(client):
                if not idle:
                    say(_no_worker(address))
                idle = True
            continue
        idle = False
        items = [item]
        if is_done:
            left -= 1
            items = _results(item, keys[item.key])
        for each in items:
            known = repr(each if isinstance(each, str) else (each["edit"], each["policy"]))
            if not is_done:
                again += known in sent
                sent.add(known)
            if known not in seen:
                seen.add(known)
                yield each
    client.unsubscribe_topic(topic)
    if again:
        say(f"{again} rows were computed twice: a worker was lost on the way")


def _results(future: Any, original: Original) -> list[Row | str]:
    """Every item of a task; of one that failed, a line. Raises the task's error, if no file is at fault."""
    if future.status == "finished":
        found: list[Row | str] = future.result()
        return found
    if future.status == "cancelled":
        raise InputError("--workers: the scheduler was stopped; the rows that came are written: run it again")
    error = future.exception()
    if type(error).__name__ == "KilledWorker":  # a worker ran out of memory, say
        return [f"{original.original.path}: {DEATHS} workers died of it; skipped"]
    raise error


def _check_running(client: Any, address: str) -> None:
    """Raises InputError if the scheduler does not answer any more."""
    if client.status != "running":
        raise InputError(
            f"--workers {address}: the scheduler is lost; the rows that came are written: run it again"
        )


def _workers(client: Any) -> list[str]:
    """The addresses of the workers."""
    return list(client.nthreads())


def _no_worker(address: str) -> str:
    return f"no worker at {address}: waiting for one (in the checkout: python -m dask worker {address})"


def _allow(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = max(dask_scheduler.allowed_failures, DEATHS)


def _present() -> None:
    """On a worker: this module is there, and all that it imports."""


def _task(job: Job, original: Original, wanted: Wanted, topic: str) -> list[Row | str]:
    """On a worker: the items of one original, each also sent as an event."""
    from distributed import get_worker

    worker, found = get_worker(), []
    with _ONE:
        for item in measured(job, original, wanted):
            worker.log_event(topic, item)
            found.append(item)
    return found

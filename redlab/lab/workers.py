"""Engines: where the points of a sweep run: threads here, or the workers of a Dask cluster."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redlab.lab.jupyter_kernel import asked_threads, stop_kernels
from redlab.names import needs

if TYPE_CHECKING:
    from distributed import Client

_CONNECT = 30  # seconds to find a scheduler, and a worker
_PATIENCE = 0.1  # seconds between two looks at threads that are to end


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(jobs: int) -> int | None:
    """Threads for each of ``jobs`` kernels side by side, so that together they fill the cores; None: as they like."""
    if jobs == 1:
        return None
    return min(max(1, cores() // jobs), asked_threads() or cores())


def check_engine(jobs: int, dask: str | None) -> None:
    """Raises ValueError where ``jobs`` is no count, or stands beside ``dask``."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be a whole number of at least 1, not {jobs!r}")
    if dask is not None and jobs != 1:
        raise ValueError("give either jobs or dask: a cluster has as many jobs as its workers have threads")


@dataclass(frozen=True)
class Killed:
    """What stands for the result of a call that killed worker after worker, until Dask gave it up.

    Attributes:
        call: its arguments.
        message: what Dask says.
    """

    call: tuple
    message: str


def map_unordered(
    function: Callable[..., Any], calls: Iterable[tuple], jobs: int, dask: str | None
) -> Generator[Any, None, None]:
    """The results of ``function`` for each tuple of arguments, in the order in which they finish.

    Close the generator to stop the calls that still run here.

    Arguments:
        jobs: calls at once, in threads: a notebook's kernel is a process of its own anyway.
        dask: the address of a Dask scheduler, whose workers make the calls instead; both must find the same files. For
            a call at which they die it yields ``Killed``, and continues with the others.

    Raises:
        ConnectionError: no scheduler there, no worker, or none like this process; or they went away.
        ModuleNotFoundError: Dask is not installed.
    """
    if dask is not None:
        yield from _on_cluster(function, calls, dask)
    elif jobs == 1:
        yield from (function(*call) for call in calls)
    else:
        yield from _in_threads(function, calls, jobs)


def _in_threads(function: Callable[..., Any], calls: Iterable[tuple], jobs: int) -> Iterator[Any]:
    """If the caller is interrupted or closes the generator, kernels are stopped and their threads clean up."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(function, *call) for call in calls]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # a kernel may only just be starting
                stop_kernels()
                time.sleep(_PATIENCE)
            raise


def _on_cluster(function: Callable[..., Any], calls: Iterable[tuple], address: str) -> Iterator[Any]:
    # Not joblib's Dask backend: with one thread in the whole cluster it makes every call here, without a word, and it
    # hands workers that come later nothing to do.
    with _connected(address) as client:
        from distributed import CancelledError, KilledWorker, as_completed

        submitted = {client.submit(function, *call, pure=False): call for call in calls}
        for future in as_completed(submitted):
            try:
                done = future.result()
            except KilledWorker as error:
                done = Killed(submitted[future], str(error))
            except (ModuleNotFoundError, RuntimeError) as error:  # RuntimeError: the scheduler could not unpickle
                what = f"the cluster at {address} lacks what this process has: {error.__cause__ or error}"
                raise ConnectionError(f"{what}; its scheduler and workers need the same environment") from error
            except CancelledError as error:
                raise ConnectionError(f"the Dask scheduler at {address} went away; call again to continue") from error
            yield done


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    needs("cluster", "distributed")
    from distributed import Client

    failure = ""
    try:
        client = Client(address, timeout=_CONNECT)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # RuntimeError: it must talk TLS, and does not
        failure = str(error) or type(error).__name__
    if failure:
        gc.collect()  # closes the client that failed; inside the next one it would wait for itself for ever
        raise ConnectionError(f"no Dask scheduler answers at {address} ({failure})")
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT)
        except TimeoutError as error:
            raise ConnectionError(f"the Dask scheduler at {address} has no workers") from error
        yield client

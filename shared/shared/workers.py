"""Many small runs side by side: processes of one thread, which end with the process that started them.

A model of a million parameters does not fill a second core, and two runs on a core each are nearly twice as fast as one
after the other on both.
"""

import contextlib
import io
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from shared.quiet import quiet_transformers


def spread(work: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[tuple[int, Any]]:
    """(number of the item, work(item)) as each is done, in any order; the first error ends it and is raised.

    Args:
        work: a function of a module (it is sent to other processes by name), and items that can be pickled.
        processes: at a time; 1 works in this process, in order.
    """
    if processes <= 1 or len(items) < 2:
        yield from ((number, work(item)) for number, item in enumerate(items))
        return
    # Set before the children import torch: threads set afterwards would stay and spin on the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Spawned, not forked: this process may have torch's threads running, which a fork would freeze in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), mp_context=context, initializer=_start_worker) as pool:
        running = {pool.submit(work, item): number for number, item in enumerate(items)}
        for done in as_completed(running):
            error = done.exception()
            if error is not None:
                pool.shutdown(cancel_futures=True)
                raise error
            yield running[done], done.result()


@contextlib.contextmanager
def quiet(package: str) -> Iterator[None]:
    """Nothing of a run on stdout, and only errors from the log of `package` and from transformers.

    One bar over all runs is what a person wants to see, not the bars and tables of each. What was set before is set
    again afterwards: with one process the runs are the caller's own process.
    """
    log = logging.getLogger(package)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _start_worker() -> None:
    """One thread, and no life after the parent: workers of a killed reproduction would go on training unseen."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

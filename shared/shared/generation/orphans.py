"""No engine outlives its run: a watcher process that ends a killed parent's children.

vLLM's engine and workers are processes of their own. When the process that started them is killed by SIGKILL or by the
out-of-memory killer, they stay (vLLM 0.32: all of them, a minute later), hold the GPU's memory, and the resumed run
cannot start. The watcher costs 16 MB and one `getppid` a second.
"""

import contextlib
import os
import select
import subprocess
import sys
import time

import psutil

POLL_S = 0.5
TERMINATE_S = 5.0


class OrphanWatch:
    """Watches over the processes that this one starts from now until `settle()`; `close()` ends the watch."""

    def __init__(self) -> None:
        spared = [child.pid for child in psutil.Process().children(recursive=True)]
        # In a session of its own, so that a signal to the run's process group leaves it at work. -P: this folder has
        # modules named like others' (`requests`).
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(os.getpid()), *map(str, spared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def settle(self) -> None:
        """All children are there: returns when the watcher has seen them and need not look for more."""
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> None:
        """End the watcher; the children are somebody else's to end now."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def watch(parent: int, spared: set[int]) -> None:
    """Wait for the parent's death, then end what it started: SIGTERM, and TERMINATE_S later SIGKILL."""
    started: dict[int, psutil.Process] = {}
    settled = False
    while os.getppid() == parent:
        if settled:
            time.sleep(2 * POLL_S)
            continue
        settled = bool(select.select([sys.stdin], [], [], POLL_S)[0])
        with contextlib.suppress(psutil.NoSuchProcess):
            started |= {child.pid: child for child in psutil.Process(parent).children(recursive=True)}
        if settled:
            print(flush=True)
    # Python's resource tracker removes shared memory and ends by itself when the others have.
    orphans = [
        child for child in started.values() if child.pid not in spared | {os.getpid()} and not _is_tracker(child)
    ]
    for orphan in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.terminate()
    for orphan in psutil.wait_procs(orphans, timeout=TERMINATE_S)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


if __name__ == "__main__":
    watch(int(sys.argv[1]), {int(pid) for pid in sys.argv[2:]})

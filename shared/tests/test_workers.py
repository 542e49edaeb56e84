"""Runs side by side: every item once, errors raised, no worker outlives the process that started it."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.workers import quiet, spread


def test_one_process_works_here_and_in_order():
    here = []
    assert list(spread(lambda n: here.append(n) or n * n, [3, 1, 2], 1)) == [(0, 9), (1, 1), (2, 4)]
    assert here == [3, 1, 2]


def test_several_processes_do_every_item_once_and_the_first_error_is_raised_as_it_was():
    assert dict(spread(math.factorial, [3, 1, 2], 2)) == {0: 6, 1: 1, 2: 2}
    with pytest.raises(ValueError, match="negative"):
        list(spread(math.factorial, [1, -1], 2))


def test_a_quiet_run_is_silent_and_leaves_the_process_as_it_was(capsys, caplog):
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    log = logging.getLogger("simcse.something")
    with pytest.raises(KeyError), quiet("simcse"):
        print("a table")
        log.warning("not this")
        log.error("but this")
        raise KeyError
    log.warning("and this again")
    assert capsys.readouterr().out == "" and [r.getMessage() for r in caplog.records] == ["but this", "and this again"]
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


SCRIPT = """
import os, time
from shared.workers import spread

def sleep(path):
    open(path, "w").write(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    list(spread(sleep, ["{0}/a", "{0}/b"], 2))
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tmp_path))
    parent = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 120
    files = [tmp_path / "a", tmp_path / "b"]
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in files]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(worker) for worker in workers)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has waited for is dead too.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

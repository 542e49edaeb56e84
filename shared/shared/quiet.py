"""Loading models without transformers' tables and bars."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar, and no table of missing and unused weights: which of them matter is decided by the caller.

    What was set before is set again afterwards.
    """
    from transformers.utils import logging  # late: most of the programs that import this load no model

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

"""What tests let other processes do: in a file of its own, for those import it, and should not take long."""

from __future__ import annotations

import os
import time


def where(seconds: float) -> int:
    """Take this long; the process that did."""
    time.sleep(seconds)
    return os.getpid()


def die_or_tell(die: bool) -> int:
    """End the process that does this, or return it."""
    if die:
        time.sleep(1)  # so that Dask does not blame what this worker did before as well
        os._exit(1)
    return os.getpid()

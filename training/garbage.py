"""Garbage collection: what lasts for the whole run is walked once, before the clock, and not again in the middle.

Imports and compilation leave a million objects behind. Drawing hundreds of shuffled windows a step makes Python's
cyclic collector look at all of them now and then, and the process stands still: most likely the 1.3 to 1.6 s that each
of four runs on H200s lost, at another step in each process, so that eight would wait for one another.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_once() -> Iterator[None]:
    """Collect now, then keep everything alive out of the collector's sight while the context lasts.

    What is made inside the context is collected as ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

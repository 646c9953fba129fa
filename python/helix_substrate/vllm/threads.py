"""The core's threads in vLLM's processes for the CPU, which bind each of their own threads to one processor."""

from __future__ import annotations

import os

import torch

from .. import _core


def prepare_threads() -> None:
    """Makes the calling thread's threads of the core where they can run side by side. New threads get the affinity of
    the thread that makes them: of one that vLLM has bound to a processor they would all share that one."""
    threads = torch.get_num_threads()
    if not hasattr(os, "sched_getaffinity"):
        return
    mine = os.sched_getaffinity(0)
    if threads <= len(mine):
        return
    os.sched_setaffinity(0, mine | _bound_processors())
    try:
        _core.context(threads)
    finally:
        os.sched_setaffinity(0, mine)


def _bound_processors() -> set[int]:
    """Processors that single threads of this process are bound to."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            affinity = os.sched_getaffinity(int(task))
        except OSError:
            continue  # it has ended
        if len(affinity) == 1:
            found |= affinity
    return found

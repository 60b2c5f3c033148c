"""Keeps hold of a backend's processes, and ends them: the only room that signals one.

Containment is a ladder, and `ladder` chooses its best rung that this machine has:

    process-group   a session and group of their own; descendants are found by ancestry, by session
                    and by the private TMPDIR in their environment, and remembered
    guardian        so, and a process beside the proxy starts them, inherits their orphans, and
                    kills all when the proxy is gone
    pid-namespace   so, and each backend has a PID namespace: the kernel ends all with its first
    cgroup          so, and each backend has a control group, which ends as one and can be limited

Neighbours: `backends.launcher` starts processes under it, `backends.stdio` runs the stop ladder.
"""

from .ladder import AUTO, RUNGS, Limits, available, chosen
from .ports import Contained, Containment, Ending, Leader, Tree
from .signals import start_of

__all__ = [
    "AUTO",
    "RUNGS",
    "Contained",
    "Containment",
    "Ending",
    "Leader",
    "Limits",
    "Tree",
    "available",
    "chosen",
    "start_of",
]

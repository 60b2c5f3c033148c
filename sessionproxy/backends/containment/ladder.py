"""Chooses the best rung of containment that this machine has, or the one that was asked for.

Neighbours: `app` has it chosen, `doctor` shows what there is.
"""

import sys
from collections.abc import Mapping
from typing import Final

from ...config import ConfigError
from .cgroups import Bounds as Limits
from .cgroups import Cgroups, base_group, is_delegated, usable
from .direct import Direct
from .groups import Groups
from .guarded import Guarded
from .namespaces import PidNamespaces, probed
from .ports import Containment, Enclosure

AUTO: Final = "auto"

RUNGS: Final = ("process-group", "guardian", "pid-namespace", "cgroup")
"""From the lowest."""

NO_LIMITS: Final = Limits()


def available(limits: Limits = NO_LIMITS) -> Mapping[str, str]:
    """Return what speaks against each rung; nothing against one that can be had. Blocks."""
    group = base_group()
    namespace = probed() if sys.platform.startswith("linux") else "there are none but on Linux"
    no_group = "no cgroup of version 2" if group is None else usable(group, limits)
    return {
        "process-group": "",
        "guardian": "" if sys.executable else "no Python interpreter is known to start it with",
        "pid-namespace": namespace if isinstance(namespace, str) else "",
        "cgroup": no_group,
    }


def chosen(asked: str = AUTO, limits: Limits = NO_LIMITS, *, own_process: bool) -> Containment:
    """Return the rung `asked` for, or the best. Blocks for milliseconds, the first time.

    `limits` need control groups. `own_process`: nobody else has children in this process.

    Raises: ConfigError: it cannot be had here; the message says why.
    """
    against = available(limits)
    if limits != NO_LIMITS and asked in (AUTO, "cgroup"):
        asked = "cgroup"
        if against[asked]:
            raise ConfigError(f"--memory-max, --pids-max: no cgroup to use: {against[asked]}")
    elif limits != NO_LIMITS:
        raise ConfigError(f"--containment {asked}: --memory-max and --pids-max need cgroup")
    if asked == AUTO:
        asked = _best(against)
    elif against[asked]:
        raise ConfigError(f"--containment {asked}: not to be had here: {against[asked]}")
    if asked == "process-group":
        return Direct(Groups(), own_process=own_process)
    guarded = Guarded(_enclosure(asked, limits))
    guarded.name = asked
    return guarded


def _best(against: Mapping[str, str]) -> str:
    """The root user may make control groups everywhere; only where one was handed to us is it
    taken without being asked for."""
    group = base_group()
    handed = group is not None and not against["cgroup"] and is_delegated(group)
    return next(
        rung for rung in reversed(RUNGS) if not against[rung] and (rung != "cgroup" or handed)
    )


def _enclosure(rung: str, limits: Limits) -> Enclosure:
    namespace = probed() if sys.platform.startswith("linux") else ""
    best: Enclosure = namespace if isinstance(namespace, PidNamespaces) else Groups()
    if rung == "cgroup":
        group = base_group()
        assert group is not None, "it was said to be available"
        return Cgroups(group, best, limits)
    return best if rung == "pid-namespace" else Groups()

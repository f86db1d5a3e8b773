"""The number of cores that this process may use, from its processors, its affinity and its CPU quotas.

A quota (a container's `--cpus`) limits processor time per period, on however many cores. More threads use it up sooner,
and then all of them wait for the next period. Linux keeps quotas in control groups, of version 2 (`cpu.max`)
or 1 (`cpu.cfs_quota_us`); each group that contains the process, at any depth, may have one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use, at least 1; fractions count as one. `root` holds `proc` and `sys`."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, min([cores, *map(math.ceil, quotas(root))]))


def quotas(root: Path = Path("/")) -> list[float]:
    """The cores that each quota on this process amounts to."""
    found = []
    for group in _groups(root):
        with suppress(OSError, ValueError, ArithmeticError):  # no such file, or no limit: "max 100000"
            quota, period = (group / "cpu.max").read_text("ascii").split()
            found.append(int(quota) / int(period))
        with suppress(OSError, ValueError, ArithmeticError):
            quota, period = (
                (group / f"cpu.cfs_{word}_us").read_text("ascii") for word in ("quota", "period")
            )
            found.append(int(quota) / int(period))
    return [cores for cores in found if cores > 0]  # -1: no limit


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups, each followed by its visible parents."""
    paths: dict[str, PurePosixPath] = {}
    for line in _lines(root / "proc/self/cgroup"):
        # version 1 "4:cpu,cpuacct:/group", version 2 "0::/group"
        found = re.fullmatch(r"(\d+):([^:]*):(/.*)", line)
        if found is not None and (found[1] == "0" or "cpu" in found[2].split(",")):
            paths["cgroup2" if found[1] == "0" else "cgroup"] = PurePosixPath(found[3])
    for line in _lines(root / "proc/self/mountinfo"):
        # "31 23 0:28 /group/seen /where rw,relatime - cgroup cgroup rw,cpu,cpuacct"
        found = re.fullmatch(r"\S+ \S+ \S+ (/\S*) /(\S*) .*- (cgroup2?) \S+ (\S+)", line)
        if found is None or found[3] not in paths:
            continue
        if found[3] == "cgroup2" or "cpu" in found[4].split(","):
            seen, mount = (PurePosixPath(_unescaped(text)) for text in (found[1], found[2]))
            path = paths[found[3]]
            # in a container the process's group is the root of the visible tree, whatever its name outside
            inside = path.relative_to(seen) if path.is_relative_to(seen) else PurePosixPath()
            if ".." in inside.parts:
                inside = PurePosixPath()
            for group in (inside, *inside.parents):
                yield root / mount / group


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux, or no such file here
        return []


def _unescaped(text: str) -> str:
    r"""A path as the kernel lists it: a space is `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)

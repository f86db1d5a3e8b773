"""How many cores there are to use: the least of processors, affinity and every quota around this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("numba")

from sparsegen.backends.numba_cpu import NumbaBackend, cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
ROOT = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"


def machine(root: Path, cgroup: str, mountinfo: str, **files: str) -> Path:
    """A root with these two files in `/proc/self`, and with `files`: path -> content."""
    written = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, **files}
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder: str, quota: object, period: int = 100000) -> dict[str, str]:
    """A group's files, as both versions have them."""
    old = {f"{folder}/cpu.cfs_quota_us": f"{-1 if quota == 'max' else quota}\n"}
    old[f"{folder}/cpu.cfs_period_us"] = f"{period}\n"
    return old if "cpu,cpuacct" in folder else {f"{folder}/cpu.max": f"{quota} {period}\n"}


OLD, NEW = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup"
MACHINES = {
    "no control groups": ("", ROOT, {}, []),
    "a quota that no number holds": ("0::/\n", V2, group(NEW, "9" * 400), []),
    "no quota": ("0::/\n", V2, group(NEW, "max"), []),
    "a container": ("0::/\n", V2, group(NEW, 150000), [1.5]),
    "a container on a host's name space": (
        "0::/docker/abc\n",
        V2.replace(" / /sys", " /docker/abc /sys"),
        group(NEW, 150000),
        [1.5],
    ),
    "a group's group": (
        "0::/a.slice/b.scope\n",
        V2,
        group(f"{NEW}/a.slice", 200000) | group(f"{NEW}/a.slice/b.scope", 350000),
        [3.5, 2.0],
    ),
    "a quota on the outer group alone": (
        "0::/a/b\n",
        V2,
        group(f"{NEW}/a", 50000, 20000) | group(f"{NEW}/a/b", "max"),
        [2.5],
    ),
    "a group that is not seen": ("0::/gone/away\n", V2, group(NEW, 300000), [3.0]),
    "a group outside the name space": ("0::/../other\n", V2, group(NEW, 300000), [3.0]),
    "another group's tree": ("0::/me\n", V2.replace(" / /sys", " /other /sys"), group(NEW, 300000), [3.0]),
    "version 1": ("4:cpu,cpuacct:/\n2:memory:/\n", ROOT + MEMORY + V1, group(OLD, 250000), [2.5]),
    "version 1, no quota": ("4:cpu,cpuacct:/\n", V1, group(OLD, "max"), []),
    "version 1, a container": (
        "4:cpuacct,cpu:/docker/abc\n",
        V1.replace(" / /sys", " /docker/abc /sys"),
        group(OLD, 100000, 50000),
        [2.0],
    ),
    "version 1, a group's group": (
        "4:cpu,cpuacct:/a/b\n",
        V1,
        group(f"{OLD}/a/b", 100000) | group(f"{OLD}/a", 300000) | group(OLD, "max"),
        [1.0, 3.0],
    ),
    "both versions": (
        "4:cpu,cpuacct:/a\n1:name=systemd:/x\n0::/b\n",
        V1 + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        group(f"{OLD}/a", 200000) | group(f"{NEW}/unified/b", 100000),
        [2.0, 1.0],
    ),
    "a place with a space": (
        "0::/\n",
        V2.replace("/sys/fs/cgroup", r"/my\040groups"),
        group("my groups", 100000),
        [1.0],
    ),
    "damaged files": ("0::/\nnonsense\n::\n", "nonsense\n" + V2, {f"{NEW}/cpu.max": "lots of it"}, []),
    "a period of nothing": ("0::/\n", V2, group(NEW, 100000, 0), []),
    "a quota of nothing": ("0::/\n", V2, group(NEW, 0), []),
    "an empty file": ("0::/\n", V2, {f"{NEW}/cpu.max": ""}, []),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_quota_around_the_process_counts(tmp_path: Path, name: str) -> None:
    cgroup, mountinfo, files, expected = MACHINES[name]
    assert cores.quotas(machine(tmp_path, cgroup, mountinfo, **files)) == expected


@pytest.mark.parametrize(
    ("quota", "affinity", "count", "expected"),
    [
        ("max", 8, 16, 8),
        ("max", 8, 4, 4),
        (150000, 8, 8, 2),  # a part of a core counts as one
        (100000, 8, 8, 1),
        (100001, 8, 8, 2),
        (1000, 8, 8, 1),  # never none
        (900000, 8, 8, 8),
        (400000, 3, 8, 3),
        (200000, 8, None, 1),  # the system does not say how many there are
    ],
)
def test_the_least_of_all_limits_is_available(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quota: object,
    affinity: int,
    count: int | None,
    expected: int,
) -> None:
    root = machine(tmp_path, "0::/\n", V2, **group(NEW, quota))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert cores.available_cores(root) == expected


def test_without_control_groups_every_core_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores.available_cores(tmp_path) == 5


def test_a_quota_bounds_threads_unless_their_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "quotas", lambda _: [2.5, 6.0])
    assert NumbaBackend().threads == 3
    assert NumbaBackend(5).threads == 5

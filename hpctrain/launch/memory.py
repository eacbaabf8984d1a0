"""Has the kernel killed something of ours because memory ran out? The counters of this process's control group tell."""

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def kills() -> int:
    """Return how often the kernel has killed a process of this control group for want of memory; 0 if unknown."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    return sum(map(_kills_in, lines))


def _kills_in(line: str) -> int:
    """Read the counter of one line of /proc/self/cgroup: `0::/path` (version 2), or `4:memory:/path` (version 1)."""
    _, controllers, path = line.split(":", 2)
    if controllers == "":
        file = _ROOT / path.lstrip("/") / "memory.events"
    elif "memory" in controllers.split(","):
        file = _ROOT / "memory" / path.lstrip("/") / "memory.oom_control"
    else:
        return 0
    try:
        words = dict(row.split(" ", 1) for row in file.read_text().splitlines() if " " in row)
    except OSError:  # not mounted, or that of the host outside of a container
        return 0
    return int(words["oom_kill"]) if words.get("oom_kill", "").isdigit() else 0

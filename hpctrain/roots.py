"""Where this user's run directories are made, noted so that a run is found by its job id or name from anywhere."""

import os
from pathlib import Path


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "hpctrain" / "roots"


def _noted() -> list[Path]:
    try:
        return [Path(line) for line in _file().read_text().splitlines()]
    except (OSError, RuntimeError):  # RuntimeError: this user has no home at all
        return []


def remember(root: Path) -> None:
    """Note where run directories are made, so that `hpctrain status JOB` finds them from anywhere."""
    if root not in _noted():
        try:
            _file().parent.mkdir(parents=True, exist_ok=True)
            with _file().open("a") as file:
                file.write(f"{root}\n")
        except (OSError, RuntimeError):  # a read-only home, or none, costs the short way to a run, not the run
            return


def known() -> list[Path]:
    """Return the directories in which runs were made, `./runs` first, those that still exist."""
    roots = dict.fromkeys([Path("runs").absolute(), *_noted()])
    return [root for root in roots if os.path.isdir(root)]  # noqa: PTH112 - a Path raises where it may not look

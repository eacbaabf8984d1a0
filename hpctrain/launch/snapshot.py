"""The code snapshot of a run: the job runs what was there at submission, whatever is edited afterwards."""

import fnmatch
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import hpctrain
from hpctrain.config.schema import Config
from hpctrain.errors import UsageError

LIMIT_MIB = 50
SECRETS = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "id_ecdsa*", ".netrc", ".pgpass"),
    *("credentials*", "secrets*", "*.kdbx", ".htpasswd", "wandb-key*", "token", "token.*", ".git-credentials"),
    *(".pypirc", "_netrc", ".aws/*", ".ssh/*", ".kube/config"),
)
"""Names of files, in any case, that are never copied into a run directory; source code may be called so."""

_SOURCE = (".py", ".pyi", ".c", ".cc", ".cpp", ".cu", ".h", ".md", ".rst")

_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "venv", "site-packages"}


def take(config: Config, project: Path, code: Path) -> list[str]:
    """Copy the project's files and the hpctrain package to `code`; return the names that were left out as secrets.

    In a git repository these are the files that git tracks or would track, below the working directory. Elsewhere
    files are copied only if the config names code of the user's own. Run directories are never copied.

    Raises:
        UsageError: they are more than 50 MiB, or one cannot be read.
    """
    code.mkdir(mode=0o700)
    names = _tracked(project)
    if names is None:
        names = _walked(project) if uses_own_code(config) else []
    else:
        runs: dict[Path, bool] = {}
        names = [name for name in names if not _in_run(project, Path(name).parent, runs)]
    hidden = [name for name in names if _is_secret(name)]
    _copy(project, [name for name in names if name not in set(hidden)], code)
    package = Path(hpctrain.__file__).parent
    shutil.copytree(package, code / "hpctrain", dirs_exist_ok=True, symlinks=False)
    return hidden


def _is_secret(name: str) -> bool:
    lower = name.lower()
    if lower.endswith(_SOURCE):
        return False
    return any(fnmatch.fnmatch(lower, f"*/{secret}") or fnmatch.fnmatch(lower, secret) for secret in SECRETS)


def uses_own_code(config: Config) -> bool:
    """Say whether the config names code of the user's own: a command, or package.module:function."""
    named = (config.model.name if config.model else "", config.data.dataset if config.data else "")
    return config.command is not None or any(":" in name for name in named)


def revision(project: Path) -> dict[str, str | bool]:
    """Return git's commit and whether there are changes, or nothing outside a repository."""
    commit = _git(project, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit.strip(), "changed": bool(_git(project, "status", "--porcelain"))}


def _git(project: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # names of files are bytes
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _tracked(project: Path) -> list[str] | None:
    listed = _git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    return None if listed is None else [name for name in listed.split("\0") if name]


def _walked(project: Path) -> list[str]:
    names = []
    for folder, subfolders, files in os.walk(project):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and not (Path(folder) / name / "pyvenv.cfg").exists()
            and not _is_run(Path(folder) / name)
        ]
        names += [os.path.relpath(os.path.join(folder, name), project) for name in files]  # noqa: PTH118
    return names


def _is_run(folder: Path) -> bool:
    return (folder / "plan.json").exists()


def _in_run(project: Path, folder: Path, known: dict[Path, bool]) -> bool:
    """Say whether a folder below the project is a run directory, or lies in one; `known` keeps the answers."""
    if folder not in known:
        known[folder] = folder != Path() and (_is_run(project / folder) or _in_run(project, folder.parent, known))
    return known[folder]


def _copy(project: Path, names: list[str], code: Path) -> None:
    left = LIMIT_MIB << 20
    for name in names:
        source, target = project / name, code / name
        if not source.is_file():  # deleted but still tracked, a submodule, or a link that leads nowhere
            continue
        left -= source.stat().st_size
        if left < 0:
            largest = sorted(((project / n).stat().st_size, n) for n in names if (project / n).is_file())[-3:]
            listed = ", ".join(f"{n} ({size >> 20} MiB)" for size, n in reversed(largest))
            raise UsageError(
                f"the code in {project} is more than {LIMIT_MIB} MiB; the largest files: {listed}",
                "list data and results in .gitignore, or run hpctrain from the directory that holds the code alone",
            )
        if not os.access(source, os.R_OK):
            raise UsageError(
                f"the code in {project} cannot be copied: no permission to read {name}",
                f"list it in .gitignore if the run does not need it, or: chmod u+r {shlex.quote(name)}",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)

"""Config and plan -> batch script. Pure, but for reading the template.

The template is a constant skeleton with `@{name}` places. Text goes to one of two kinds of place:

- `#SBATCH` lines, read by sbatch's own lexer, which is no shell: there no quoting is safe, so each value must
  `fullmatch` the pattern of its field in `config.schema` and nothing is quoted;
- the body, read by bash: there every value is a literal quoted by `shlex.quote`, but for the lines of `env.setup`,
  which are shell code by intent.
"""

import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, get_args

import msgspec

from hpctrain.config.load import Loaded
from hpctrain.config.schema import Config, Container, Slurm
from hpctrain.config.texts import seconds
from hpctrain.errors import ConfigError, UsageError
from hpctrain.plan import Plan
from hpctrain.rundir import SAFE_PATH, RunDir, read_json
from hpctrain.schedule import signal_s

OPTIONS = {
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "time": "--time",
    "mem": "--mem",
    "constraint": "--constraint",
    "gres": "--gres",
    "exclude": "--exclude",
    "nodelist": "--nodelist",
    "reservation": "--reservation",
    "dependency": "--dependency",
    "mail_type": "--mail-type",
    "mail_user": "--mail-user",
}
"""Fields of `slurm` whose text goes to a `#SBATCH` line as it stands, and the option of each."""

RELAYED = frozenset({"torchrun", "mpirun", "horovodrun"})
"""Launchers of their own: srun starts one task per node, `hpctrain.train.relay`, and they start the ranks."""

_LONGEST = 1024  # of a value; sbatch takes lines of some thousand bytes, no list of nodes needs more
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class BatchTemplate(string.Template):
    """A template whose places are `@{name}`; every `$`, `${name}` and lone `@` is the shell's."""

    delimiter = "@"
    pattern: ClassVar[Any] = (
        r"@(?:(?P<escaped>(?!))|(?P<named>(?!))|\{(?P<braced>[a-z][a-z0-9_]*)\}|(?P<invalid>(?=\{)))"
    )


def template_file(name: str = "ddp.sbatch") -> Path:
    """Return a template that comes along: in a wheel it lies inside the package, in a checkout next to it."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "jobs" / name
    return inside if inside.is_file() else here.parent / "jobs" / name


def render(loaded: Loaded, plan: Plan, run: RunDir, *, python: str) -> str:
    """Return the batch script of a run.

    Args:
        loaded: the config.
        plan: what follows from it.
        run: directory of the run; its path goes to `#SBATCH` lines.
        python: interpreter of the ranks if the config names neither one, nor a venv or container.

    Raises:
        ConfigError: a value may not stand where it would go.
        UsageError: the template cannot be read, lacks a place or has an unknown one, or the path is not safe.
    """
    if SAFE_PATH.fullmatch(str(run.path)) is None:
        raise UsageError(
            f"runs: {str(run.path)!r} holds characters that a batch script cannot carry safely",
            "use letters, digits and / _ . + @ = , : - only, for instance runs=$HOME/runs",
        )
    files = [f"--output={run.path}/slurm-%j.out", f"--chdir={run.path}"]
    values = places(loaded, plan, python=python)
    values["sbatch_options"] = _lines([*files, *sbatch_options(loaded, plan, run)])
    values["run_directory"] = f"run={quote(str(run.path))}"
    return fill(template(loaded), values)


def template(loaded: Loaded) -> Path:
    """Return the template of a config: the site's own, or the one that comes along."""
    config = loaded.config
    if config.slurm.template:
        return Path(absolute(config.slurm.template))
    return template_file("horovod.sbatch" if config.dist.strategy == "horovod" else "ddp.sbatch")


def fill(path: Path, values: Mapping[str, str]) -> str:
    """Fill a template's places.

    Raises:
        UsageError: it cannot be read, lacks a place or has an unknown one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(
            f"slurm.template: cannot read {path}: {why}",
            f"copy {template_file()} and edit it, or leave slurm.template out",
        ) from None
    found = list(BatchTemplate.pattern.finditer(text))
    allowed = "places are " + ", ".join(f"@{{{name}}}" for name in sorted(values))
    for match in found:
        if match["braced"] not in values:
            line = text.count("\n", 0, match.start()) + 1
            rest = text[match.start() :].split("\n", 1)[0][:40]
            raise UsageError(f"{path}:{line}: unknown place {rest[: rest.find('}') + 1] or rest!r}", allowed)
    missing = sorted(values.keys() - {match["braced"] for match in found})
    if missing:
        raise UsageError(
            f"{path} lacks {', '.join(f'@{{{name}}}' for name in missing)}: what the config says there would be lost",
            f"start again from a copy of {template_file()}; its {allowed}",
        )
    return BatchTemplate(text).substitute(values)


def sbatch_options(loaded: Loaded, plan: Plan, run: RunDir | None = None) -> list[str]:
    """Return the options of a job, without those that depend on where the run directory is.

    Args:
        loaded: the config.
        plan: what follows from it.
        run: whose earlier attempts have measured how long a stop takes.

    Raises:
        ConfigError: one line for each value that may not stand in a `#SBATCH` line.
    """
    config, slurm = loaded.config, loaded.config.slurm
    relayed = plan.launcher in RELAYED
    if problems := _refused(loaded):
        raise ConfigError(problems)
    counts = {
        "--nodes": plan.nodes,
        "--ntasks-per-node": 1 if relayed else plan.ranks_per_node,
        "--cpus-per-task": (slurm.cpus_per_task or 0) * (plan.ranks_per_node if relayed else 1),
        "--gpus-per-node": slurm.gpus_per_node,
    }
    # Without --requeue Slurm also refuses `scontrol requeue`; the script holds each cause to its own budget.
    restarts = any(msgspec.structs.astuple(config.restart))
    options = [
        f"--job-name={config.name}",
        "--open-mode=append",
        "--requeue" if restarts else "--no-requeue",
        *(f"{option}={count:d}" for option, count in counts.items() if count),
        *(f"{option}={getattr(slurm, name)}" for name, option in OPTIONS.items() if getattr(slurm, name) is not None),
    ]
    before_s = _signal_s(config, run)
    return [*options, f"--signal=USR2@{before_s}"] if before_s else options


def _refused(loaded: Loaded) -> list[str]:
    """Hold the values of `#SBATCH` lines against their patterns once more: a Config can be made without `load`."""
    config, problems = loaded.config, []
    checks: list[tuple[type[msgspec.Struct], str, str]] = [(Slurm, f"slurm.{name}", name) for name in OPTIONS]
    for kind, key, name in [*checks, (type(config), "name", "name")]:
        value = getattr(config.slurm if kind is Slurm else config, name)
        if value is None:
            continue
        pattern, expect = allowed_text(kind, name)
        safe = isinstance(value, str) and len(value) <= _LONGEST and not _CONTROL.search(value)
        if not safe or re.fullmatch(pattern, value, re.ASCII) is None:
            problems.append(loaded.problem(key, f"expected {expect}, got {str(value)[:80]!r}"))
    return problems


def allowed_text(kind: type[msgspec.Struct], name: str) -> tuple[str, str]:
    """Return the pattern of a text field, and the words for what it wants; the schema is their one home."""
    annotation = kind.__annotations__[name]
    for option in (annotation, *get_args(annotation)):
        for meta in getattr(option, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.extra and "pattern" in meta.extra:
                return meta.extra["pattern"], meta.extra["expect"]
    raise AssertionError(f"{kind.__name__}.{name} goes to a #SBATCH line and has no pattern")


def _signal_s(config: Config, run: RunDir | None) -> int | None:
    """Seconds before the limit at which the ranks are told to stop: as asked, as an attempt measured, or a guess."""
    if config.command is not None:
        return config.slurm.signal_s
    limit = None if config.slurm.time is None else seconds(config.slurm.time)
    return signal_s(config.slurm.signal_s, limit, None if run is None else learned_s(run))


def learned_s(run: RunDir) -> int | None:
    """Return what the newest attempt that saved has measured of the time that a stop takes; None if none did."""
    measured = (read_json(run.timing(number)).get("grace_s") for number in reversed(run.attempt_numbers()))
    return next((found for found in measured if isinstance(found, int)), None)


def places(loaded: Loaded, plan: Plan, *, python: str) -> dict[str, str]:
    """Return what goes to the places of the script's body."""
    config, env = loaded.config, loaded.config.env
    rank = f'"$python" -m {"hpctrain.train.relay" if plan.launcher in RELAYED else "hpctrain.train"} "$run"'
    mpi = mpi_type(config, plan)
    srun_options = [f"--mpi={quote(mpi)}"] if mpi else []
    if env.container is not None:
        mounts = _mounts(loaded, env.container, plan)
        shown = image(env.container.image)
        if env.container.runtime == "pyxis":
            listed = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
            srun_options += [
                f"--container-image={quote(shown)}",
                f'--container-mounts="$run:$run"{quote("," + listed) if listed else ""}',
                "--no-container-entrypoint",
            ]
        else:
            binds = "".join(f" --bind {quote(mount)}" for mount in mounts)
            nv = " --nv" if plan.device == "cuda" else ""
            rank = f'apptainer exec{nv} --bind "$run"{binds} {quote(shown)} {rank}'
    return {
        "python": quote(_python(loaded, python)),
        "ledger": quote(python) if env.container else '"$python"',
        "modules": " ".join(quote(module) for module in env.modules),
        "venv": quote(absolute(env.venv)) if env.venv else "''",
        "setup": _setup(env.setup),
        "srun_options": "".join(f"{option} " for option in srun_options),
        "rank_command": rank,
    }


def mpi_type(config: Config, plan: Plan) -> str | None:
    """Return the MPI that srun shall offer its tasks; None leaves that to the site."""
    if plan.launcher == "srun":
        return config.dist.mpi or ("pmix" if plan.backend == "mpi" else None)
    # the tasks are no ranks: what srun told them of an MPI would mislead the one that they start
    return "none" if plan.launcher in {"mpirun", "horovodrun"} else None


def _python(loaded: Loaded, python: str) -> str:
    env = loaded.config.env
    if env.python is not None:
        return absolute(env.python) if "/" in env.python else env.python
    return "python" if env.venv or env.container else python


def _setup(lines: tuple[str, ...]) -> str:
    # A carriage return or another line break in a line would be a line that nobody has read.
    for line in lines:
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", line):
            raise ConfigError([f"env.setup: control characters in {line[:80]!r}"])
    return "\n".join(["# env.setup, as it stands in the config:", *lines]) if lines else "# env.setup is empty"


def _mounts(loaded: Loaded, container: Container, plan: Plan) -> list[str]:
    """Directories to show in a container next to the run directory; both runtimes split at commas and colons."""
    data = loaded.config.data
    path = plan.data_path or (data.path if data else None)
    shown = [absolute(path)] if path else []
    if any(character in path for path in shown for character in ",:"):
        raise ConfigError([loaded.problem("data.path", "a container cannot show a path with a comma or colon")])
    return [*container.mounts, *shown]


def image(name: str) -> str:
    """Make a container image absolute if it is a file; an address stays."""
    is_path = name.startswith(("/", "./", "../", "~")) or name.endswith((".sif", ".sqsh"))
    return absolute(name) if is_path and "://" not in name else name


def absolute(path: str) -> str:
    """Expand `~` and make a path absolute here, because the job starts somewhere else."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 -- text in, text out; a Path would be undone at once


def _lines(options: list[str]) -> str:
    return "\n".join(f"#SBATCH {option}" for option in options)

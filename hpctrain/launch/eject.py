"""`hpctrain eject`: a batch script that carries its config and plan, for login nodes without hpctrain.

The nodes still need it, in the interpreter that the script names. The job makes its own run directory.
"""

from shlex import quote

import msgspec

from hpctrain.config.load import Loaded, dump
from hpctrain.errors import UsageError
from hpctrain.launch.render import fill, places, sbatch_options, template
from hpctrain.plan import Plan


def eject(loaded: Loaded, plan: Plan, *, python: str) -> str:
    """Return the script; `sbatch FILE` starts it, from the directory below which relative paths of the config lie.

    Raises:
        ConfigError: a value may not stand where it would go.
        UsageError: the template cannot be used.
    """
    values = places(loaded, plan, python=python)
    values["run_directory"] = _run_directory(loaded, plan)
    values["sbatch_options"] = "\n".join(
        f"#SBATCH {option}" for option in ["--output=slurm-%j.out", *sbatch_options(loaded, plan)]
    )
    return fill(template(loaded), values)


def _run_directory(loaded: Loaded, plan: Plan) -> str:
    runs = loaded.config.runs
    if runs == "~" or runs.startswith("~/"):
        root = f'"$HOME"{quote(runs[1:])}'
    elif runs.startswith("~"):
        raise UsageError(f"runs: {runs!r}: a batch script cannot look up another user's home", "give an absolute path")
    else:
        root = quote(runs)
    return "\n".join([
        "# The run directory is made by the first attempt; a requeued job finds it again. There is no snapshot of the",
        "# code: hpctrain and the modules that the config names are those that the interpreter finds.",
        f"runs={root}",
        "[[ $runs == /* ]] || runs=${SLURM_SUBMIT_DIR:-$PWD}/$runs",
        f"run=$runs/{quote(loaded.config.name)}-$SLURM_JOB_ID",
        "if [[ ! -e $run/job.json ]]; then",
        '  mkdir -p -- "$runs" && mkdir -p -- "$run"/{attempts,ckpt,stage} || fail "cannot make $run"',
        _file("config.yaml", dump(loaded.config)),
        _file("plan.json", msgspec.json.format(msgspec.json.encode(plan), indent=2).decode()),
        '  sed "s|^run=\\$runs/.*|run=$run|" "$0" >"$run/job.sbatch"  # so that it can be submitted again',
        "  printf -v job '{\"scheduler\":\"slurm\",\"job_id\":\"%s\",\"submitted\":%(%s)T}' \"$SLURM_JOB_ID\" -1",
        '  printf %s "$job" >"$run/.job.json" && mv -- "$run/.job.json" "$run/job.json"',
        "fi",
        '[[ -s $run/job.json ]] || fail "cannot write to $run"',
    ])  # fmt: skip


def _file(name: str, text: str) -> str:
    """Return a quoted here-document: bash takes its lines as they stand, up to one that the text does not hold."""
    lines, end = text.rstrip("\n").split("\n"), "END"
    while end in lines:
        end += "_"
    return "\n".join([f"  cat >\"$run/{name}\" <<'{end}'", *lines, end])

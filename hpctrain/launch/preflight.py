"""What can be known before the queue: does the cluster have what is asked, are the files there? One sinfo."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hpctrain.config.load import Loaded
from hpctrain.config.texts import seconds
from hpctrain.dist import mpirun
from hpctrain.launch import own_code, slurm
from hpctrain.launch.refusal import unknown_partition
from hpctrain.launch.render import absolute, image, mpi_type, template
from hpctrain.plan import Plan


def preflight(loaded: Loaded, plan: Plan, *, on_slurm: bool = True, code: bool = True) -> list[str]:
    """Return what would go wrong, each as `file:line:col: message`; nothing: submit.

    Args:
        loaded: the config.
        plan: what follows from it.
        on_slurm: where it shall run.
        code: look for the user's own code in this directory; not where a run has its snapshot already.

    Raises:
        ClusterError: Slurm cannot be asked.
    """
    problems = [
        *(own_code.problems(loaded) if code else ()),
        *_files(loaded, plan, on_slurm=on_slurm),
        *_horovod(loaded, plan, on_slurm=on_slurm),
    ]
    if not on_slurm:
        return [*problems, *_local_launcher(loaded, plan)]
    return [*problems, *_cluster(loaded, plan, slurm.partitions()), *_mpi(loaded, plan)]


def _files(loaded: Loaded, plan: Plan, *, on_slurm: bool) -> list[str]:
    config, env, problems = loaded.config, loaded.config.env, []
    data = plan.data_path or (config.data.path if config.data else None)
    if data is not None and not os.access(absolute(data), os.R_OK):
        problems.append(loaded.problem("data.path", f"{data} is not there, or cannot be read"))
    if env.python is not None and env.container is None and not _is_program(env.python, on_slurm=on_slurm):
        there = "is no program that can be started" if "/" in env.python else "is no program on PATH"
        problems.append(loaded.problem("env.python", f"{env.python} {there}; give the path of a python, or none"))
    if not on_slurm:
        return problems
    if config.slurm.template is not None and not template(loaded).is_file():
        problems.append(loaded.problem("slurm.template", f"there is no file {template(loaded)}"))
    if env.venv is not None and not Path(absolute(env.venv), "bin", "activate").is_file():
        problems.append(
            loaded.problem("env.venv", f"{absolute(env.venv)} is no virtual environment: it has no bin/activate")
        )
    if env.container is not None:
        path = image(env.container.image)
        if path.startswith("/") and not Path(path).exists():
            problems.append(loaded.problem("env.container.image", f"there is no file {path}"))
    return problems


def _horovod(loaded: Loaded, plan: Plan, *, on_slurm: bool) -> list[str]:
    """Look for Horovod, if the ranks' Python is this one."""
    env = loaded.config.env
    elsewhere = env.python or (on_slurm and (env.venv or env.container or env.modules or env.setup))
    if plan.strategy != "horovod" or elsewhere or (plan.ranks == 1 and loaded.config.command is None):
        return []
    from hpctrain.dist import horovod_build

    found = horovod_build.problem(plan.backend)
    return [loaded.problem("dist.strategy", f"{found[0]}; {found[1]}")] if found else []


def _is_program(name: str, *, on_slurm: bool) -> bool:
    """Say whether a program can be started; what a bare name means on the nodes cannot be known here."""
    if "/" not in name:
        return on_slurm or shutil.which(name) is not None
    return os.path.isfile(absolute(name)) and os.access(absolute(name), os.X_OK)  # noqa: PTH113 - may be another user's


def _mpi(loaded: Loaded, plan: Plan) -> list[str]:
    """Ask srun whether it has the MPI that it shall offer its tasks."""
    wanted = mpi_type(loaded.config, plan)
    if wanted is None or wanted == "none":
        return []
    there = slurm.mpi_flavours()
    if wanted in there or not there:  # no list: this is no place where srun knows
        return []
    what = f"srun has no MPI type {wanted!r}{'' if loaded.config.dist.mpi else ', which dist.backend=mpi needs'}"
    choices = ", ".join(name for name in there if name != "none")
    use = f"use dist.mpi=NAME, one of: {choices}; or dist.launcher=mpirun" if choices else "use dist.launcher=mpirun"
    return [loaded.problem("dist.mpi" if loaded.config.dist.mpi else "dist.backend", f"{what}; {use}")]


def _local_launcher(loaded: Loaded, plan: Plan) -> list[str]:
    """Without Slurm, mpirun starts the ranks of this machine: it must be here now."""
    if plan.launcher != "mpirun" or mpirun.find("mpirun") is not None:
        return []
    problem = f"mpi starts the ranks by mpirun, and there is none on PATH; {mpirun.GET_MPIRUN}"
    return [loaded.problem("dist.backend", problem)]


def _cluster(loaded: Loaded, plan: Plan, partitions: Sequence[slurm.Partition]) -> list[str]:
    """Hold the request against the partitions; with several of them Slurm takes any one that fits."""
    asked = loaded.config.slurm.partition
    if asked is None:
        chosen = [partition for partition in partitions if partition.default]
        if partitions and not chosen:
            return [loaded.problem("slurm", f"this cluster has no default partition; {_choices(partitions)}")]
    else:
        known = {partition.name: partition for partition in partitions}
        unknown = [name for name in asked.split(",") if name not in known]
        if unknown:
            return [
                loaded.problem(
                    "slurm.partition", f"{_sentence(unknown_partition(name, list(known)))} {_choices(partitions)}"
                )
                for name in unknown
            ]
        chosen = [known[name] for name in asked.split(",")]
    refusals = [_refusals(loaded, plan, partition) for partition in chosen]
    return min(refusals, key=len, default=[])


def _refusals(loaded: Loaded, plan: Plan, partition: slurm.Partition) -> list[str]:
    config, name, problems = loaded.config.slurm, partition.name, []
    if partition.state in {"drain", "inact", "inactive"}:
        problems.append(
            loaded.problem("slurm.partition", f"partition {name} takes no jobs now: it is {partition.state}")
        )
    if plan.nodes > partition.nodes:
        problems.append(
            loaded.problem("slurm.nodes", f"{plan.nodes} nodes are asked for, partition {name} has {partition.nodes}")
        )
    limit_s = _limit_s(partition.time_limit)
    if config.time is not None and limit_s is not None and seconds(config.time) > limit_s:
        problems.append(
            loaded.problem("slurm.time", f"{config.time} is asked for, partition {name} allows {partition.time_limit}")
        )
    gpus = max((_gpus(gres) for gres in partition.gres), default=0)
    if config.gpus_per_node > gpus:
        problems.append(
            loaded.problem(
                "slurm.gpus_per_node",
                f"{config.gpus_per_node} GPUs per node are asked for, nodes of partition {name} have {gpus or 'none'}",
            )
        )
    return problems


def _limit_s(text: str) -> int | None:
    """Read a partition's limit as sinfo writes it: [D-]HH:MM:SS, MM:SS or infinite."""
    if re.fullmatch(r"\d+:\d\d", text):
        text = f"0:{text}"
    return seconds(text) if re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", text) else None


def _gpus(gres: str) -> int:
    """Count the GPUs in a node's resources, such as `gpu:a100:4(S:0-1),gpu:a30:2,nvme:1`."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text};"


def _choices(partitions: Sequence[slurm.Partition]) -> str:
    return f"slurm.partition=NAME, one of: {', '.join(partition.name for partition in partitions)}"

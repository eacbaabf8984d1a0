"""What needs a real Slurm gets a private one, shared by the whole test session."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

if str(Path(__file__).parents[2]) not in sys.path:  # tests import what they share by its name
    sys.path.insert(0, str(Path(__file__).parents[2]))

import hpctrain
from hpctrain.dist import mpirun
from hpctrain.errors import UsageError
from hpctrain.launch import slurm
from hpctrain.rundir import RunDir, read_json
from hpctrain.sandbox import cluster as api
from hpctrain.sandbox.spec import Spec, require_packages
from hpctrain.sandbox.state import Sandbox

NODES = 4
GPUS_PER_NODE = 2


@dataclass(frozen=True)
class Cluster:
    """A sandbox that the tests of one session share: each leaves it as it found it, all nodes idle."""

    sandbox: Sandbox
    env: dict[str, str]
    """For processes that shall use it: Slurm's clients and hpctrain are found, a developer's sandbox is not."""
    nodes: tuple[str, ...]

    def run(self, cmd: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as a user outside would; `options` are those of `subprocess.run`."""
        defaults = {"env": self.env, "capture_output": True, "timeout": 120}
        return subprocess.run(cmd, text=True, check=False, **{**defaults, **options})

    def node(self, verb: str, name: str) -> None:
        """Break or mend a node: crash, up, cut, join, kill-slurmd, start-slurmd."""
        with mock.patch.dict(os.environ, HPCTRAIN_SANDBOX_ROOT=str(self.sandbox.root)):
            api.node(verb, name)


@pytest.fixture(scope="session")
def slurm_packages() -> None:
    """Skip where Slurm is not installed; fail there in CI."""
    try:
        require_packages(Spec(nodes=NODES, gpus_per_node=GPUS_PER_NODE))
    except UsageError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def open_mpi() -> None:
    """Skip where there is no mpirun; fail there in CI."""
    if mpirun.find("mpirun") is None:
        problem = f"no mpirun: {mpirun.GET_MPIRUN}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)


@pytest.fixture(params=["srun", "torchrun", "mpirun"])
def launcher(request: pytest.FixtureRequest) -> str:
    """What starts the ranks; a test that asks for it runs under each."""
    if request.param == "mpirun":
        request.getfixturevalue("open_mpi")
    return str(request.param)


@pytest.fixture(scope="session")
def cluster(slurm_packages: None) -> Iterator[Cluster]:
    """Four idle nodes with two fake GPUs each."""
    with tempfile.TemporaryDirectory(prefix="hpctrain-state-") as state_home:
        ours = {"XDG_STATE_HOME": state_home}
        with mock.patch.dict(os.environ, ours):
            os.environ.pop("HPCTRAIN_SANDBOX_ROOT", None)
            sandbox = api.up(nodes=NODES, gpus_per_node=GPUS_PER_NODE)
        try:
            yield Cluster(sandbox, _env(sandbox, ours), tuple(f"n{number}" for number in range(1, NODES + 1)))
        finally:
            with mock.patch.dict(os.environ, ours):
                api.down()


def _env(sandbox: Sandbox, ours: dict[str, str]) -> dict[str, str]:
    package = str(Path(hpctrain.__file__).parents[1])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH_", "HPCTRAIN_"))}
    first = {"PATH": str(sandbox.bin), "PYTHONPATH": package}
    joined = {key: f"{value}:{kept[key]}" if kept.get(key) else value for key, value in first.items()}
    return {**kept, **joined, **ours}


@pytest.fixture
def stand_in(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunDir]]:
    """Submit runs of stand-in ranks; their jobs are cancelled afterwards."""
    from tests.cluster import stand_in as runs

    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, cluster.env[name])
    started: list[RunDir] = []

    def start(script: str, *overrides: str, rank: str = runs.RANK) -> RunDir:
        started.append(runs.start(tmp_path, script, *overrides, rank=rank))
        return started[-1]

    yield start
    for run in started:
        slurm.cancel(read_json(run.job)["job_id"])

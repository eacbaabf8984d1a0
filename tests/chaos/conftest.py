"""Faults that are injected at an exact place, and what is needed to see that nothing was lost."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

if str(Path(__file__).parents[2]) not in sys.path:  # tests and ranks import what they share by its name
    sys.path.insert(0, str(Path(__file__).parents[2]))

from hpctrain.rundir import RunDir
from tests.chaos import oracle
from tests.chaos.runs import Address, Chaos
from tests.cluster.conftest import cluster, slurm_packages
from tests.train.ranks import Ranks

__all__ = ["cluster", "slurm_packages"]  # fixtures that tests here use, too


@pytest.fixture
def ranks(tmp_path) -> Iterator[Ranks]:
    started = Ranks(tmp_path)
    yield started
    started.end()


@pytest.fixture(scope="session")
def strace() -> str:
    """Return the program that makes system calls fail; skip where it is not installed, fail there in CI."""
    found = shutil.which("strace")
    if found is None:
        how = "strace is not installed: apt-get install --no-install-recommends strace"
        if os.environ.get("CI") == "true":
            pytest.fail(how)
        pytest.skip(how)
    return found


@pytest.fixture
def chaos(tmp_path) -> Iterator[Callable[..., Chaos]]:
    """Make projects whose models do harm."""
    made: list[Chaos] = []

    def make(addresses: Sequence[Address] = ()) -> Chaos:
        made.append(Chaos(tmp_path / f"project_{len(made)}", addresses))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Iterator[Callable[..., RunDir]]:
    """Run undisturbed, once for each number of ranks and overrides."""
    made: dict[tuple[int | str, ...], RunDir] = {}
    projects: list[Chaos] = []

    def run(ranks: int, *overrides: str) -> RunDir:
        if (ranks, *overrides) not in made:
            project = Chaos(tmp_path_factory.mktemp("twin") / "project")
            projects.append(project)
            frozen = project.freeze(ranks, *overrides)
            assert project.supervise(frozen) == 0, oracle.logs(frozen)
            made[ranks, *overrides] = frozen
        return made[ranks, *overrides]

    yield run
    for project in projects:
        project.end()

"""Runs with a model that does harm: make one, supervise it here, and see what it left."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hpctrain import plan as planning
from hpctrain.config.load import load
from hpctrain.launch.submit import freeze
from hpctrain.rundir import RunDir
from tests.chaos import supervise
from tests.train.ranks import SERVER

STEPS, SAMPLES = 24, 282  # two epochs, the last step of each with a smaller batch
CONFIG = """
name: chaos
data: {dataset: digits, samples: SAMPLES, augment: {crop: padded, padding: 1, flip: true}}
model: {name: "chaos:build", args: {folder: FOLDER}}
batch: {global: 24, accumulate: 2}
optim: {lr: 0.1, momentum: 0.9, weight_decay: 1.0e-4, warmup: 5 steps, schedule: cosine}
train: {epochs: 2}
checkpoint: {every: 1 steps}
restart: {preempted: 100, time_limit: 100, node_failure: 100, rank_killed: 100}
log: {every: 6 steps, samples: true}
dist: {fork: false}
"""
_WAIT_S = 400

Address = dict[str, Any]


def address(kind: str, rank: int, step: int, at: str = "forward", *, always: bool = False) -> Address:
    """Return an entry of addresses.json."""
    return {"kind": kind, "rank": rank, "step": step, "at": at, "always": always}


@dataclass
class Chaos:
    """A project whose model does harm at the given addresses."""

    project: Path
    addresses: Sequence[Address] = ()
    started: list[BaseProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.project / "injected"
        self.folder.mkdir(parents=True)
        (self.folder / "addresses.json").write_text(json.dumps(list(self.addresses)))
        sources = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(__file__).with_name("injected"), self.project / "chaos", ignore=sources)
        text = CONFIG.replace("FOLDER", str(self.folder)).replace("SAMPLES", str(SAMPLES))
        (self.project / "chaos.yaml").write_text(text)

    def freeze(self, ranks: int, *overrides: str) -> RunDir:
        """Make a run directory as `hpctrain run` does."""
        from hpctrain.data.locate import locate

        runs = f"runs={self.project}/runs"
        loaded = load(self.project / "chaos.yaml", [runs, *overrides])
        assert loaded.config.data is not None
        layout = planning.Layout(nodes=1, ranks_per_node=ranks)
        plan = planning.make(loaded, layout, locate(loaded.config.data))
        before = Path.cwd()
        os.chdir(self.project)
        try:
            return freeze(loaded, plan, argv=["test"])
        finally:
            os.chdir(before)

    def supervise(self, run: RunDir) -> int:
        """Supervise a run until it ends; return the exit code, negative for a signal."""
        process = self.start(run)
        process.join(_WAIT_S)
        assert process.exitcode is not None, "the supervisor still runs"
        return process.exitcode

    def start(self, run: RunDir) -> BaseProcess:
        """Start to supervise a run."""
        process = SERVER.Process(target=supervise.supervise, args=(run.path, self.project / "supervisor.log"))
        process.start()
        self.started.append(process)
        return process

    def said(self) -> str:
        """Return what the supervisors have printed."""
        return (self.project / "supervisor.log").read_text()

    def done(self) -> set[str]:
        """Return the names of the markers: what was really injected."""
        return {path.name for path in self.folder.iterdir()} - {"addresses.json", "publications.jsonl", "full"}

    def end(self) -> None:
        """Leave no process behind: the ranks die with their supervisor."""
        for process in self.started:
            process.kill()
            process.join()
            process.close()


def marker(given: Address) -> str:
    """Return the name of an address's marker."""
    return f"{given['kind']}-{given['at']}-r{given['rank']}-s{given['step']}"

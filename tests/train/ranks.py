"""Start real ranks of a run and wait for them; used by the tests of `train` and `dist`."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hpctrain import plan as planning
from hpctrain.config import schema
from hpctrain.config.duration import Duration
from hpctrain.config.load import Loaded
from hpctrain.errors import HpctrainError
from hpctrain.plan import Layout, Plan, Samples
from hpctrain.rundir import RunDir
from hpctrain.world import World

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.train.ranks_preload"])
_WAIT_S = 60


def make_config(**changes: Any) -> schema.Config:
    """Return a tiny run on the digits; sections are given as dicts and merged into it."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"dataset": "digits"},
        "model": {"name": "mlp", "args": {"hidden": [16]}},
        "batch": {"global_": 60},
        "optim": {"lr": 0.1, "momentum": 0.9, "warmup": Duration(5, "steps"), "schedule": "cosine"},
        "train": {"epochs": 2},
        "checkpoint": {"every": Duration(1, "epochs")},
        "log": {"every": Duration(10, "steps")},
    }
    kinds = {
        "data": schema.Data,
        "model": schema.Model,
        "batch": schema.Batch,
        "optim": schema.Optim,
        "train": schema.Train,
        "checkpoint": schema.Checkpoint,
        "log": schema.Log,
    }
    plain = {}
    for key, value in changes.items():
        if key in kinds:
            sections[key] |= value
        else:
            plain[key] = value
    if "steps" in sections["train"]:
        sections["train"].pop("epochs", None)
    built: dict[str, Any] = {key: kind(**sections[key]) for key, kind in kinds.items()}
    return schema.Config(name="t", **built, **plain)


def make_plan(config: schema.Config, ranks: int, samples: Samples | None = None) -> Plan:
    """Work out the plan of a config on one node."""
    from hpctrain.data.locate import locate

    if config.data is None:
        raise AssertionError
    loaded = Loaded.__new__(Loaded)
    object.__setattr__(loaded, "config", config)
    return planning.make(loaded, Layout(nodes=1, ranks_per_node=ranks), samples or locate(config.data))


@dataclass
class Job:
    """Ranks of one attempt."""

    run: RunDir
    attempt: int
    processes: list[BaseProcess]
    results: Path

    def wait(self, *, timeout_s: float = _WAIT_S) -> list[dict[str, Any]]:
        """Wait for all ranks; return what each reported: {"outcome": ...} or {"error": kind, "message": ...}."""
        until = time.monotonic() + timeout_s
        reports: dict[int, dict[str, Any]] = {}
        while len(reports) < len(self.processes):
            for rank, process in enumerate(self.processes):
                if rank not in reports and not process.is_alive():
                    path = self.results / f"{rank}.json"
                    reports[rank] = json.loads(path.read_text()) if path.exists() else {"exit": process.exitcode}
                    if "outcome" not in reports[rank] and "value" not in reports[rank]:
                        until = min(until, time.monotonic() + 3)  # the others wait for it in vain
            if time.monotonic() > until:
                self.kill()
                break
            time.sleep(0.005)
        return [reports.get(rank, {"killed": True}) for rank in range(len(self.processes))]

    def outcome(self) -> dict[str, Any]:
        """Wait, and return rank 0's outcome; fails if a rank failed."""
        reports = self.wait()
        assert all("outcome" in report for report in reports), reports
        outcome: dict[str, Any] = reports[0]["outcome"]
        return outcome

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        """End all ranks at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def metrics(self, split: str = "train") -> list[dict[str, Any]]:
        """Return the records of a split."""
        lines = map(json.loads, self.run.metrics(self.attempt).read_text().splitlines())
        return [line for line in lines if line["split"] == split]

    def steps(self) -> int:
        """Return the last step in metrics.jsonl so far."""
        try:
            return max((line["step"] for line in self.metrics()), default=0)
        except FileNotFoundError:
            return 0


@dataclass
class Ranks:
    """Starts jobs below one directory and ends what is left of them."""

    root: Path
    jobs: list[Job] = field(default_factory=list)

    def run_dir(self, name: str = "run") -> RunDir:
        """Make or take a run directory."""
        run = RunDir(self.root / name)
        for part in (run.attempts, run.ckpt, run.stage):
            part.mkdir(parents=True, exist_ok=True)
        return run

    def start(
        self,
        config: schema.Config,
        size: int,
        *,
        run: RunDir,
        plan: Plan | None = None,
        until: int | None = None,
        body: str = "train",
        options: dict[str, Any] | None = None,
    ) -> Job:
        """Start `size` ranks of the next attempt; with `until` they are told to stop after that step, to the step."""
        attempt = run.begin_attempt({})
        results = run.attempt(attempt) / "results"
        results.mkdir()
        plan = plan or make_plan(config, size)
        listener = socket.create_server(("127.0.0.1", 0))
        processes: list[BaseProcess] = []
        for rank in range(size):
            arguments = (rank, size, run.path, attempt, config, plan, listener, until, body, options or {})
            process = SERVER.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            processes.append(process)
        # The ranks got copies through the fork server; ours must close, or no one sees the others end.
        job = Job(run, attempt, processes, results)
        job_listeners.append(listener)
        self.jobs.append(job)
        return job

    def end(self) -> None:
        """Leave no process behind."""
        for job in self.jobs:
            job.kill()
        while job_listeners:
            job_listeners.pop().close()


job_listeners: list[socket.socket] = []


def _rank(
    rank: int,
    size: int,
    path: Path,
    attempt: int,
    config: schema.Config,
    plan: Plan,
    listener: socket.socket,
    until: int | None,
    body: str,
    options: dict[str, Any],
) -> None:
    """Be one rank: what hpctrain.train.session does, with the world as the test wants it."""
    import torch

    from hpctrain.dist.connect import connect
    from hpctrain.train.stop import Stop
    from tests.train import bodies

    run = RunDir(path)
    log = run.attempt(attempt) / "logs" / f"rank_{rank}"
    for descriptor, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    os.environ.update(options.get("env", {}))
    if rank == options.get("absent"):
        signal.pause()
    torch.set_num_threads(1)
    world = World(rank=rank, size=size, local_rank=rank, local_size=size, launcher="torchrun", host="localhost")
    stop = bodies.StopAt(until) if until is not None else Stop()
    stop.install()
    port = listener.getsockname()[1]
    listen_fd = listener.detach() if rank == 0 else None
    if rank:
        listener.close()
    code = 0
    try:
        device = torch.device("cpu")
        comm = connect(
            plan,
            world,
            store=("127.0.0.1", port),
            listen_fd=listen_fd,
            interface="lo",
            device=device,
            timeout_s=options.get("timeout_s", 30),
            settings=config.dist,
        )
        report = bodies.find(body)(run, attempt, config, plan, world, comm, device, stop, options)
        comm.close()
    except BaseException as error:  # noqa: BLE001
        traceback.print_exc()
        code = error.exit_code if isinstance(error, HpctrainError) else 1
        report = {"error": type(error).__name__, "message": str(error)}
    temporary = run.attempt(attempt) / "results" / f".{rank}"
    temporary.write_text(json.dumps(report))
    temporary.rename(run.attempt(attempt) / "results" / f"{rank}.json")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

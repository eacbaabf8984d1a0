"""Start-up of the launcher against its peers, and the first barrier of two ranks; everything interleaved in one run.

    python tests/bench/launcher.py [--rounds 15] [--peers DIR/bin/python] [--only start|barrier]

`--peers` is the Python of a virtual environment with simple_slurm, submitit and torchx. Prints medians and quartiles
in milliseconds, and the ratio to `python -c pass`.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BIN = Path(sys.executable).parent

SIMPLE_SLURM = "from simple_slurm import Slurm; print(Slurm(job_name='a', nodes=2, ntasks_per_node=2, time='0:30:00'))"
SUBMITIT = """
import submitit, sys
executor = submitit.AutoExecutor(folder='logs', cluster='slurm')
executor.update_parameters(name='a', nodes=2, tasks_per_node=2, timeout_min=30)
print(executor._executor._make_submission_file_text('python train.py', 'abc'))
"""
BARRIER = """
import os, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(repr(time.time()))
os._exit(0)  # now and then Gloo's threads abort an interpreter that is being torn down
"""


def whole(argv: list[str], cwd: Path) -> float:
    """Time one process from start to end, in milliseconds."""
    began = time.perf_counter()
    subprocess.run(argv, cwd=cwd, check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare(stamp: Path, work: Path) -> None:
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen([sys.executable, "barrier.py", str(stamp)], cwd=work, env={**env, "RANK": str(r)})
        for r in range(2)
    ]
    assert all(rank.wait() == 0 for rank in ranks)


def through_hpctrain(stamp: Path, work: Path) -> None:
    command = f"command=[python, barrier.py, {stamp}]"
    argv = [str(BIN / "hpctrain"), "run", "barrier.yaml", command, "--ranks", "2"]
    subprocess.run(argv, cwd=work, check=True, capture_output=True)


def through_torchrun(stamp: Path, work: Path) -> None:
    argv = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "barrier.py", str(stamp)]
    subprocess.run(argv, cwd=work, check=True, capture_output=True)


def to_barrier(start: Callable[[Path, Path], None], work: Path) -> float:
    """Time from the start of the launcher to the end of the first barrier on rank 0, in milliseconds."""
    stamp = work / "stamp"
    began = time.time()
    start(stamp, work)
    return (float(stamp.read_text()) - began) * 1000


def table(times: dict[str, list[float]], base: str) -> None:
    reference = statistics.median(times[base])
    print(f"{'':<34}{'median':>9}{'quartiles':>18}{'ratio':>8}   n={len(times[base])}")
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:<34}{middle:>9.1f}{low:>9.1f} -{high:>7.1f}{middle / reference:>8.2f}")


def start_up(rounds: int, peers: str | None, work: Path) -> None:
    hpctrain = str(BIN / "hpctrain")
    config = str(ROOT / "configs" / "quickstart.yaml")
    commands: dict[str, list[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "hpctrain --help": [hpctrain, "--help"],
        "hpctrain check": [hpctrain, "check", config, "--scheduler", "local"],
        "hpctrain submit --dry-run": [hpctrain, "submit", config, "--dry-run"],
    }
    if peers:
        torchx = str(Path(peers).parent / "torchx")
        ddp = ["dist.ddp", "-j", "2x2", "--script", "train.py"]
        commands |= {
            "simple_slurm, script": [peers, "-c", SIMPLE_SLURM],
            "submitit, script": [peers, "-c", SUBMITIT],
            "torchx run --dryrun": [torchx, "run", "--dryrun", "-s", "slurm", "--workspace", "", *ddp],
        }
        (work / "train.py").write_text("")
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, argv in commands.items():
            took = whole(argv, work)
            if turn:  # the first round warms the caches of the file system
                times[name].append(took)
    table(times, "python -c pass")


def first_barrier(rounds: int, work: Path) -> None:
    (work / "barrier.py").write_text(BARRIER)
    (work / "barrier.yaml").write_text("name: barrier\ncommand: [python, barrier.py]\n")
    starts = {"two bare processes": bare, "hpctrain run": through_hpctrain, "torchrun": through_torchrun}
    times: dict[str, list[float]] = {name: [] for name in starts}
    for turn in range(rounds + 1):
        for name, start in starts.items():
            took = to_barrier(start, work)
            if turn:
                times[name].append(took)
    table(times, "two bare processes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers")
    parser.add_argument("--only", choices=["start", "barrier"])
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        if arguments.only != "barrier":
            start_up(arguments.rounds, arguments.peers, work)
        if arguments.only != "start":
            first_barrier(arguments.rounds, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

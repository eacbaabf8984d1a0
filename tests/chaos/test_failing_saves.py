"""Each file operation of a save fails once, or kills the rank: what happened is said, and nothing is lost."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpctrain.config.duration import Duration
from tests.train.ranks import Job, Ranks, make_config

pytestmark = pytest.mark.torch

FILES = ("model.safetensors", "optim.safetensors", "rng.safetensors", "ema.safetensors", "manifest.json")
STAGED, PUBLISHED, OLD = "stage/attempt_2/step_00000008", "ckpt/step_00000008", "ckpt/step_00000004"
DELETED = "stage/attempt_2/deleted_step_4"
POINTS = [
    ("mkdir", STAGED),
    *[("openat", f"{STAGED}/{name}") for name in FILES],
    *[("write", f"{STAGED}/{name}") for name in FILES],
    *[("fsync", f"{STAGED}/{name}") for name in FILES],
    ("fsync", STAGED),
    ("rename", STAGED),
    ("fsync", "ckpt"),
    ("read", f"{PUBLISHED}/{FILES[0]}"),
    ("read", f"{PUBLISHED}/{FILES[-1]}"),
    ("rename", OLD),
    ("rmdir", DELETED),
]
"""Calls and their paths, in the order of a save that replaces an older one."""
RENAMED = POINTS.index(("rename", STAGED))
TEXTS = {"ENOSPC": "No space left on device", "EDQUOT": "Disk quota exceeded", "EIO": "Input/output error"}


def config():
    return make_config(
        train={"steps": 12, "ema": 0.9}, checkpoint={"every": Duration(4, "steps"), "keep": 1}, batch={"global_": 60}
    )


@contextmanager
def injected(strace: str, job: Job, call: str, path: Path, what: str) -> Iterator[Path]:
    """Let one call of a rank that waits to begin fail on one path; gives strace's record of it."""
    log = job.run.attempt(job.attempt) / "strace"
    # unlinkat is what rmdir is called beside a descriptor
    calls = {"mkdir": "mkdir,mkdirat", "rename": "rename,renameat,renameat2", "rmdir": "rmdir,unlinkat"}.get(call, call)
    options = ["-f", "-o", str(log), "-P", str(path), "-e", f"trace={calls}", "-e", f"inject={calls}:{what}:when=1"]
    tracer = subprocess.Popen(
        [strace, *options, "-p", str(job.processes[0].pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 30
        while "TracerPid:\t0" in Path(f"/proc/{job.processes[0].pid}/status").read_text():
            assert time.monotonic() < until
            assert tracer.poll() is None, tracer.stderr.read() if tracer.stderr else ""
            time.sleep(0.002)
        (job.run.attempt(job.attempt) / "go").touch()
        yield log
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The last checkpoint of a run that nothing disturbed."""
    ranks = Ranks(tmp_path_factory.mktemp("twin"))
    try:
        job = ranks.start(config(), 1, run=ranks.run_dir())
        assert job.outcome()["verdict"] == "completed"
        yield {name: (job.run.checkpoint(12) / name).read_bytes() for name in FILES}
    finally:
        ranks.end()


def begun(ranks: Ranks, strace: str, call: str, path: str, what: str) -> tuple[Job, dict[str, Any]]:
    """Save step 4 in one attempt, and have the save of step 8 fail in the next; return that one and its report."""
    run = ranks.run_dir()
    assert ranks.start(config(), 1, run=run, until=4).outcome()["step"] == 4
    job = ranks.start(config(), 1, run=run, body="held")
    with injected(strace, job, call, run.path / path, what) as log:
        (report,) = job.wait()
    recorded = log.read_text()
    assert "(INJECTED)" in recorded or "killed by SIGKILL" in recorded, recorded
    return job, report


def goes_on(ranks: Ranks, job: Job, step: int, twin: dict[str, bytes]) -> None:
    """The next attempt begins at `step` and ends as the undisturbed twin did."""
    last = ranks.start(config(), 1, run=job.run)
    assert last.outcome()["verdict"] == "completed"
    assert f"going on from step {step}," in job.run.log(last.attempt, 0, "out").read_text()
    assert {name: (job.run.checkpoint(12) / name).read_bytes() for name in FILES} == twin
    assert job.run.checkpoints() == [12]
    assert [path.name for path in job.run.stage.iterdir()] == [f"attempt_{last.attempt}"]


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(("call", "path"), POINTS)
def test_a_failing_call_ends_the_attempt_with_its_reason(ranks: Ranks, strace, twin, call, path, error):
    number = POINTS.index((call, path))
    job, report = begun(ranks, strace, call, path, f"error={error}")
    assert report["error"] == ("DiskFullError" if error == "ENOSPC" and call != "read" else "CheckpointError")
    assert TEXTS[error] in report["message"]
    if call != "read":
        what = "step 8 was not saved" if number < POINTS.index(("rename", OLD)) else "step 8 is saved, but an older one"
        assert report["message"].startswith(what)
    goes_on(ranks, job, 4 if number <= RENAMED else 8, twin)


@pytest.mark.parametrize(("call", "path"), POINTS)
def test_a_rank_killed_at_any_call_of_a_save_loses_at_most_that_save(ranks: Ranks, strace, twin, call, path):
    job, report = begun(ranks, strace, call, path, "signal=KILL")
    assert report == {"exit": -9}
    goes_on(ranks, job, 4 if POINTS.index((call, path)) <= RENAMED else 8, twin)


def test_a_quota_is_a_full_disk(ranks: Ranks, strace, twin):
    job, report = begun(ranks, strace, "fsync", f"{STAGED}/{FILES[0]}", "error=EDQUOT")
    assert report["error"] == "DiskFullError"
    assert report["message"].startswith("step 8 was not saved: Disk quota exceeded (")
    goes_on(ranks, job, 4, twin)


def test_what_the_paths_mean_is_still_so(ranks: Ranks, strace):
    """Each point lies on the way of a save: were a file or a directory called otherwise, nothing would be tested."""
    run = ranks.run_dir()
    ranks.start(config(), 1, run=run, until=4).outcome()
    job = ranks.start(config(), 1, run=run, body="held", until=8)
    log = run.attempt(2) / "strace"
    pid = str(job.processes[0].pid)
    tracer = subprocess.Popen([strace, "-f", "-y", "-o", str(log), "-e", "trace=file,write,fsync,read", "-p", pid],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.002)
        (run.attempt(2) / "go").touch()
        job.wait()
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)
    lines = log.read_text().splitlines()
    assert all(any(call in line and path in line for line in lines) for call, path in POINTS if call != "rmdir")
    written = {line.split("<", 1)[1].split(">")[0] for line in lines if "fsync(" in line}
    inside = {os.path.relpath(path, run.path) for path in written if path.startswith(f"{run.path}/")}
    known = {path for call, path in POINTS if call == "fsync"}
    assert inside - known == {"stage"} | {path for path in inside if path.startswith("attempts/")}

"""Faults that do not end an attempt by themselves, or that the supervisor must survive: each run ends like its twin."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpctrain.rundir import RunDir, read_json
from tests.chaos import oracle
from tests.chaos.runs import SAMPLES, STEPS, address, marker

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


def assert_done(project):
    assert {marker(one) for one in project.addresses} <= project.done()


@pytest.mark.parametrize("kind", ["clock forward", "clock back"])
def test_the_clock_jumps_while_the_run_goes_on_and_is_told_to_stop(chaos, twin, kind):
    """On each rank in another step; then a stop and a restart, whose times are compared with those before."""
    jumps = [address(kind, 0, 3), address(kind, 1, 5)]
    project = chaos([*jumps, address("clock forward", 1, 12), address("usr2", 0, 14), address("clock back", 0, 18)])
    run = project.freeze(2, "model.args.pause_ms=30")
    assert project.supervise(run) == 0, oracle.logs(run)
    assert_done(project)
    assert oracle.causes(run)[-1] is None
    assert set(oracle.causes(run)[:-1]) <= {"time_limit"}
    oracle.assert_like(run, twin(2), samples=SAMPLES)


@pytest.mark.parametrize(("kind", "start"), [("old listing", 8), ("ghost listing", 9)])
def test_a_restart_that_sees_an_old_list_of_checkpoints_loses_a_step_and_nothing_else(chaos, twin, kind, start):
    """As on a network file system whose directory was changed by another node a moment ago."""
    project = chaos([address("sigkill", 1, 9), address(kind, 0, 2, "start")])
    run = project.freeze(2)
    assert project.supervise(run) == 0, oracle.logs(run)
    assert_done(project)
    assert f"going on from step {start}" in run.log(2, 0, "out").read_text()
    assert oracle.causes(run) == ["rank_killed", None]
    oracle.assert_like(run, twin(2), samples=SAMPLES)


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_dies_before_the_first_step_of_its_attempt(chaos, twin, rank, attempt):
    before = [address("sigkill", 0, 7)] if attempt == 2 else []
    project = chaos([*before, address("sigkill", rank, attempt, "start")])
    run = project.freeze(2)
    assert project.supervise(run) == 0, oracle.logs(run)
    assert_done(project)
    assert oracle.causes(run) == ["rank_killed"] * attempt + [None]
    oracle.assert_like(run, twin(2), samples=SAMPLES)


@pytest.mark.parametrize("kind", ["sigkill", "raise"])
@pytest.mark.parametrize(("rank", "step"), [(0, 12), (1, STEPS)])
def test_a_rank_fails_while_it_evaluates(chaos, twin, kind, rank, step):
    project = chaos([address(kind, rank, step, "evaluate")])
    run = project.freeze(2)
    codes = [project.supervise(run)]
    if kind == "raise":
        codes.append(project.supervise(run))
    assert codes[-1] == 0, oracle.logs(run)
    assert_done(project)
    assert oracle.causes(run) == ["error" if kind == "raise" else "rank_killed", None]
    oracle.assert_like(run, twin(2), samples=SAMPLES)
    tested = [line for line in run.metrics(2).read_text().splitlines() if '"split":"test"' in line]
    assert len(tested) == (2 if step == 12 else 1), "an evaluation that was cut off is made up for"


@pytest.mark.parametrize("step", [2, 7, 12, 23])  # by the third step the first one is certainly saved
def test_the_supervisor_is_killed_and_the_run_goes_on_by_hand(chaos, twin, step):
    project = chaos([address("supervisor", step % 2, step)])
    run = project.freeze(2)
    assert project.supervise(run) == -signal.SIGKILL
    assert project.supervise(run) == 0, oracle.logs(run)
    assert_done(project)
    assert oracle.causes(run)[-1] is None
    assert "going on from step" in run.log(2, 0, "out").read_text()
    oracle.assert_like(run, twin(2), samples=SAMPLES)


def cli(project, *arguments, inside=(), check=True):
    """Type `hpctrain run` in a project: nothing is forked or shared with this process."""
    argv = [*inside, sys.executable, "-m", "hpctrain", "run", "chaos.yaml", "--ranks", "2", *arguments]
    env = os.environ | {"XDG_STATE_HOME": str(project.project / "state")}
    done = subprocess.run(argv, cwd=project.project, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0 or not check, done.stderr
    [path] = (project.project / "runs").iterdir()
    return RunDir.open(path), done


@pytest.mark.parametrize("fork", ["true", "false"])
def test_new_processes_end_like_forked_ones(chaos, twin, fork):
    project = chaos([address("sigsegv", 1, 5), address("usr2", 0, 11), address("sigkill", 0, 17, "publish")])
    run, _ = cli(project, f"dist.fork={fork}")
    assert_done(project)
    assert [cause for cause in oracle.causes(run) if cause != "time_limit"] == ["rank_killed", "rank_killed", None]
    oracle.assert_like(run, twin(2), samples=SAMPLES)


@pytest.fixture
def small_memory() -> Iterator[Sequence[str]]:
    """Return a command that runs another in a control group with 2 GiB of memory; skip where none can be made."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = [Path("/sys/fs/cgroup/memory") / path.lstrip("/") for _, name, path in lines if name == "memory"]
    group = own[0] / f"hpctrain-test-{os.getpid()}" if own else None
    try:
        if group is None:
            pytest.skip("needs the memory controller of control groups, version 1")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(2**31))
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a control group with all that still runs in it."""
    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            break
        time.sleep(0.1)


def test_the_kernel_kills_a_rank_for_want_of_memory(chaos, twin, small_memory):
    project = chaos([address("host memory", 1, 9)])
    run, done = cli(project, inside=small_memory, check=False)
    assert done.returncode == 4, done.stderr
    assert_done(project)
    [outcome] = oracle.outcomes(run)
    assert (outcome["cause"], outcome["rank"]) == ("out_of_memory", 1), outcome
    assert "rank 1 was killed because memory ran out" in done.stderr
    assert project.supervise(run) == 0, oracle.logs(run)
    oracle.assert_like(run, twin(2), samples=SAMPLES)


# A network of its own with few free ports, and a stranger on the others and on torch's default one who answers all.
SQUEEZED = """
import os, select, socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as range_:
    range_.write("40000 40119")
held = [socket.create_server(("0.0.0.0", port)) for port in (29500, *range(40000, 40080))]
with subprocess.Popen(sys.argv[1:]) as run:
    while run.poll() is None:
        for door in select.select(held, [], [], 0.1)[0]:
            stranger, _ = door.accept()
            stranger.sendall(b"220 not what you want")
            stranger.close()
sys.exit(run.returncode)
"""


def private(*namespaces):
    """Return a command that runs another in namespaces of its own; skip where that is refused."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    argv = ["unshare", *user, *namespaces, "--"]
    if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("namespaces are refused here")
    return argv


def test_ports_are_taken_by_a_stranger(chaos, twin):
    """Before the run begins and when it restarts: no attempt may count on a port, or talk to whoever answers."""
    project = chaos([address("sigkill", 1, 9)])
    run, _ = cli(project, inside=[*private("--net"), sys.executable, "-c", SQUEEZED])
    assert_done(project)
    assert oracle.causes(run) == ["rank_killed", None]
    oracle.assert_like(run, twin(2), samples=SAMPLES)


# Mount a small disk at the place that is named, run a command there, make room, and run the last word on the run.
SMALL_DISK = """
import subprocess, sys
place, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], check=True)
first = subprocess.run(command[:-1], check=False).returncode
subprocess.run(["sh", "-c", f"rm {place}/*/filler; {command[-1]} {place}/*"], check=True)
subprocess.run(["cp", "-a", f"{place}/.", f"{place}.kept"], check=True)
sys.exit(first)
"""


def test_the_disk_is_full_and_the_run_goes_on_when_there_is_room(chaos, twin):
    """The run lies on a small tmpfs that only it sees."""
    project = chaos([address("fill disk", 0, 9)])
    runs = project.project / "runs"
    runs.mkdir()
    again = f"{sys.executable} -m hpctrain.launch.local"
    argv = [*private("--mount"), sys.executable, "-c", SMALL_DISK, str(runs)]
    argv += [sys.executable, "-m", "hpctrain", "run", "chaos.yaml", "--ranks", "2", again]
    done = subprocess.run(argv, cwd=project.project, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 4, done.stderr
    assert "step 10 was not saved: No space left on device" in done.stderr, done.stderr
    assert "make room; hpctrain resume " in done.stderr
    assert "Traceback" not in done.stderr.split("hpctrain: step 10 was not saved")[1], "not the supervisor's own"
    assert_done(project)
    [path] = (project.project / "runs.kept").iterdir()
    run = RunDir.open(path)
    assert read_json(run.outcome(2)).get("verdict") == "completed"
    oracle.assert_like(run, twin(2), samples=SAMPLES)


def test_the_threads_that_make_batches_end(chaos):
    """Whoever waits for them must not wait for ever; the run ends with a reason, and goes on by hand."""
    options = ("data={dataset: 'chaos:data', workers: '2'}",)
    calm, hit = chaos(), chaos([address("end loader", 1, 9)])
    twin, _ = cli(calm, *options)
    run, done = cli(hit, *options, check=False)
    assert done.returncode == 4, done.stderr
    assert_done(hit)
    [outcome] = oracle.outcomes(run)
    assert (outcome["verdict"], outcome["cause"]) == ("failed", "error")
    assert "SystemExit" in outcome["message"], outcome
    assert hit.supervise(run) == 0, oracle.logs(run)
    oracle.assert_like(run, twin, samples=SAMPLES)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_the_run_starts_again(chaos, twin, rank):
    """Its peer waits for it in a collective, and its own process cannot do anything."""
    project = chaos([address("sigstop", rank, 9)])
    run = project.freeze(2, "dist.hang=5")
    assert project.supervise(run) == 0, oracle.logs(run)
    assert_done(project)
    first, second = oracle.outcomes(run)
    assert (first["cause"], first["rank"]) == ("hang", rank), oracle.logs(run)
    assert second["verdict"] == "completed"
    oracle.assert_like(run, twin(2), samples=SAMPLES)

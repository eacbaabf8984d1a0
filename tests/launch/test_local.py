"""The local supervisor with small programs as ranks: no torch, real processes."""

import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHOW = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['MASTER_ADDR'], os.getcwd())"


def config(project, program, **more):
    (project / "program.py").write_text(program)
    lines = ["name: small", "command: [python, program.py]", *(f"{key}: {value}" for key, value in more.items())]
    (project / "small.yaml").write_text("\n".join(lines))
    return "small.yaml"


def the_run(project):
    [run] = (project / "runs").iterdir()
    return run


def outcomes(run):
    return [json.loads(path.read_text()) for path in sorted(run.glob("attempts/*/outcome.json"))]


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def alive(text):
    return [p.parent.name for p in Path("/proc").glob("[0-9]*/cmdline") if text.encode() in read(p)]


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_ranks_get_the_environment_of_torchrun_and_their_own_logs(project, hpctrain):
    done = hpctrain("run", config(project, SHOW), "--ranks", "3")
    assert done.returncode == 0, done.stderr
    run = the_run(project)
    assert done.stdout == f"0 3 127.0.0.1 {run}/code\n"
    logs = [(run / f"attempts/1/logs/rank_{rank}.out").read_text() for rank in range(3)]
    assert logs == [f"{rank} 3 127.0.0.1 {run}/code\n" for rank in range(3)]
    assert outcomes(run) == [{"verdict": "completed"}]
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert hpctrain("logs", "small", "--rank", "2").stdout == logs[2]


def test_a_run_directory_holds_what_the_user_is_promised(project, hpctrain):
    hpctrain("run", config(project, SHOW), "slurm.time=1-00:00:00")
    run = the_run(project)
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "plan.json", "env.json", "job.sbatch", "job.json"),
        *("code", "code.sha256", "ckpt", "stage", "attempts", "owners"),
    }
    assert "1-00:00:00" in (run / "config.yaml").read_text()
    env = json.loads((run / "env.json").read_text())
    assert env["argv"][1:] == ["run", "small.yaml", "slurm.time=1-00:00:00"]
    assert (run / "code/program.py").read_text() == SHOW


def test_what_only_slurm_jobs_use_is_named(project, hpctrain):
    done = hpctrain("run", config(project, SHOW, env="{modules: [cuda/12], setup: ['x=1']}"))
    assert done.returncode == 0
    assert f"hpctrain: env.modules, env.setup set up Slurm jobs; here {sys.executable} runs as it is" in done.stderr


def test_a_failing_rank_ends_the_others_and_is_named(project, hpctrain):
    program = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(7)\ntime.sleep(60)\n"
    began = time.monotonic()
    done = hpctrain("run", config(project, program), "--ranks", "2")
    assert (done.returncode, time.monotonic() - began < 20) == (4, True)
    assert "rank 1 ended with exit code 7" in done.stderr
    why = {"cause": "error", "exit_code": 7, "message": "rank 1 ended with exit code 7"}
    assert outcomes(the_run(project)) == [{"verdict": "failed", **why, "rank": 1, "host": platform.node()}]


def test_a_killed_rank_is_started_again_within_its_budget(project, hpctrain):
    program = (
        "import os, pathlib, signal\n"
        "done = pathlib.Path('again'); n = len(done.read_text()) if done.exists() else 0\n"
        "done.write_text('x' * (n + 1))\n"
        "if n < 2: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert hpctrain("run", config(project, program)).returncode == 0
    assert [outcome.get("cause") for outcome in outcomes(the_run(project))] == ["rank_killed", "rank_killed", None]


def test_the_budget_ends_the_run(project, hpctrain):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = hpctrain("run", config(project, program, restart="{rank_killed: 1}"))
    assert done.returncode == 4
    assert "ended by rank_killed 2 times, restart.rank_killed allows 1" in done.stderr
    assert len(outcomes(the_run(project))) == 2


def test_the_background_goes_on_alone_and_is_found_by_name_and_job(project, hpctrain):
    name = config(project, "import time; print('started', flush=True); time.sleep(2); print('ended')")
    began = time.monotonic()
    done = hpctrain("submit", name, "dist.ranks=2", "--scheduler", "local")
    assert time.monotonic() - began < 2, "submit returns at once"
    job, run = (line.split(maxsplit=1)[1] for line in done.stdout.splitlines())
    until(lambda: "started" in hpctrain("logs", run).stdout)
    [row] = json.loads(hpctrain("status", "--json", job).stdout)
    assert (row["state"], row["attempt"], row["run"]) == ("RUNNING", 1, run)
    followed = hpctrain("logs", "-f", "small", "--rank", "1")
    assert followed.stdout == "started\nended\n"
    [row] = json.loads(hpctrain("status", "--json", "small").stdout)
    assert row["state"] == "COMPLETED"


def test_cancel_leaves_no_process(project, hpctrain):
    """Not the supervisor, not a rank, not what a rank has started, even if that ignores TERM."""
    mark = f"mark{os.getpid()}"
    program = (
        "import subprocess, time\n"
        f"deaf = 'trap \"\" TERM; : {mark}; while :; do sleep 0.1; done'\n"
        "subprocess.Popen(['bash', '-c', deaf], start_new_session=True)\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    done = hpctrain("submit", config(project, program), "--scheduler", "local")
    run = done.stdout.split()[-1]
    until(lambda: "started" in hpctrain("logs", run).stdout and alive(mark))
    cancelled = hpctrain("cancel", run)
    assert cancelled.returncode == 0, cancelled.stderr
    assert (alive(mark), alive(run)) == ([], [])
    [row] = json.loads(hpctrain("status", "--json", run).stdout)
    assert row["state"] == "CANCELLED"
    assert "has ended already: CANCELLED" in hpctrain("cancel", run).stderr


def test_a_supervisor_killed_by_9_takes_its_ranks_along(project, hpctrain):
    done = hpctrain(
        "submit", config(project, "import time; print('started', flush=True); time.sleep(60)"), "--scheduler", "local"
    )
    job, run = (line.split(maxsplit=1)[1] for line in done.stdout.splitlines())
    until(lambda: "started" in hpctrain("logs", run).stdout)
    os.kill(int(job.removeprefix("local-")), signal.SIGKILL)
    until(lambda: not alive(run))
    [row] = json.loads(hpctrain("status", "--json", run).stdout)
    assert row["state"] == "FAILED"


def test_ctrl_c_in_the_foreground_reaches_the_ranks_and_ends_them(project, hpctrain):
    program = "import time; print('started', flush=True); time.sleep(60)"
    running = subprocess.Popen(
        [sys.executable, "-m", "hpctrain", "run", config(project, program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = until(lambda: next(iter((project / "runs").glob("*")), None))
    until(lambda: "started" in read(run / "attempts/1/logs/rank_0.out").decode())
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 4, err
    assert alive(str(run)) == []
    assert "hpctrain: stopped: it was told to stop" in err
    assert f"hpctrain resume {run} goes on" in err
    assert "restart 1 of" not in err
    [row] = json.loads(hpctrain("status", "--json", run).stdout)
    assert row["state"] == "CANCELLED"


@pytest.mark.torch
def test_a_stopped_run_goes_on_by_the_command_it_prints(project, hpctrain):
    (project / "digits.yaml").write_text(
        "name: digits\ndata: {dataset: digits}\nmodel: {name: mlp}\nbatch: {global: 60}\noptim: {lr: 0.1}\n"
        "train: {epochs: 20}\nlog: {every: 5 steps}\n"
    )
    argv = [sys.executable, "-m", "hpctrain", "run", "digits.yaml", "--ranks", "2"]
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = until(lambda: next(iter((project / "runs").glob("*")), None))
    until((run / "attempts/1/metrics.jsonl").exists)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert f"hpctrain resume {run} goes on" in err
    first = outcomes(run)[0]
    assert first["verdict"] == "stopped", "else it was quicker"
    assert hpctrain("resume", run, "--follow").returncode == 0
    assert (outcomes(run)[1]["verdict"], outcomes(run)[1]["step"]) == ("completed", 500)
    [row] = json.loads(hpctrain("status", "--json", run).stdout)
    assert (row["state"], row["attempt"]) == ("COMPLETED", 2)


def test_a_program_that_is_not_there_is_named(project, hpctrain):
    (project / "small.yaml").write_text("name: small\ncommand: [no-such-program]\n")
    done = hpctrain("run", "small.yaml")
    assert done.returncode == 4
    assert "command: 'no-such-program' cannot be started" in done.stderr


def test_two_jobs_pointed_at_each_other_by_hand_both_refuse(project, hpctrain):
    """Real rank processes; the published addresses of two waiting jobs are swapped."""
    runs = []
    for _ in range(2):
        done = hpctrain("submit", config(project, SHOW), "dist.ranks=2", "--scheduler", "local")
        run = Path(done.stdout.split()[-1])
        until(lambda run=run: outcomes(run))
        runs.append(run)
    ranks = {}
    for run in runs:
        attempt = run / "attempts/2"
        (attempt / "logs").mkdir(parents=True)
        (attempt / "secret").write_text(run.name)
        ranks[run, 0] = start_rank(run, 0)
    for run in runs:
        until(lambda run=run: (run / "attempts/2/rendezvous.json").exists())
    first, second = (run / "attempts/2/rendezvous.json" for run in runs)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    try:
        for run in runs:
            ranks[run, 1] = start_rank(run, 1)
        for run in runs:
            assert ranks[run, 1].wait(20) == 4
            assert "is not of this run" in (run / "attempts/2/logs/rank_1.err").read_text()
            assert "turned away a stranger" in until(lambda run=run: (run / "attempts/2/logs/rank_0.err").read_text())
            assert not (run / "attempts/2/logs/rank_0.out").read_text()
    finally:
        for rank in ranks.values():
            rank.kill()
            rank.wait()


def start_rank(run, rank):
    env = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "HPCTRAIN_ATTEMPT": "2",
        "PYTHONPATH": str(run / "code"),
    }
    return subprocess.Popen([sys.executable, "-m", "hpctrain.train", str(run)], env=env)


@pytest.fixture
def mpirun():
    if shutil.which("mpirun") is None:
        problem = "no mpirun: apt install openmpi-bin"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)


def test_mpirun_starts_the_ranks_where_the_backend_is_mpi(project, mpirun, hpctrain):
    program = "import os; print(os.environ['RANK'], os.environ['OMPI_COMM_WORLD_RANK'], os.getcwd())"
    done = hpctrain("run", config(project, program, dist="{backend: mpi}"), "--ranks", "3")
    assert done.returncode == 0, done.stderr
    run = the_run(project)
    logs = [(run / f"attempts/1/logs/rank_{rank}.out").read_text() for rank in range(3)]
    assert logs == [f"{rank} {rank} {run}/code\n" for rank in range(3)]
    assert outcomes(run) == [{"verdict": "completed"}]


@pytest.mark.parametrize(
    ("act", "cause", "message"),
    [("sys.exit(7)", "error", "ended with exit code 7"), ("os.kill(0, 9)", "rank_killed", "was killed by signal 9")],
)
def test_a_rank_that_fails_under_mpirun_is_named(project, mpirun, act, cause, message, hpctrain):
    act = act.replace("(0,", "(os.getpid(),")
    program = f"import os, sys, time\nif os.environ['RANK'] == '1': {act}\ntime.sleep(60)\n"
    began = time.monotonic()
    name = config(project, program, dist="{backend: mpi}", restart="{rank_killed: 0}")
    done = hpctrain("run", name, "--ranks", "2")
    assert (done.returncode, time.monotonic() - began < 20) == (4, True), done.stderr
    [outcome] = outcomes(the_run(project))
    assert (outcome["cause"], outcome["rank"]) == (cause, 1)
    assert message in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_under_mpirun(project, mpirun, number):
    program = "import os, pathlib, time\npathlib.Path(f'up{os.environ[\"RANK\"]}').touch()\ntime.sleep(60)\n"
    argv = [sys.executable, "-m", "hpctrain", "run", config(project, program, dist="{backend: mpi}"), "--ranks", "2"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as supervisor:
        until(lambda: len(list(project.glob("runs/*/code/up*"))) == 2)
        supervisor.send_signal(number)
        assert supervisor.wait(20) != 0
    until(lambda: not alive(str(the_run(project))))
    if number != signal.SIGKILL:
        assert [outcome["cause"] for outcome in outcomes(the_run(project))] == ["cancelled"]

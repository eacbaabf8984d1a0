"""`run`: a sandbox around one command."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpctrain
from hpctrain.errors import ClusterError
from hpctrain.sandbox import cluster

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

PACKAGE = Path(hpctrain.__file__).parent
CALL = "import sys; from hpctrain.sandbox import cluster; sys.exit(cluster.run(sys.argv[2:], **eval(sys.argv[1])))"


def caller(script, python=sys.executable, **options):
    """Return the command line of a process that calls `run`."""
    return [python, "-c", CALL, repr({"nodes": 2, "gpus_per_node": 2} | options), "bash", "-c", script]


def run(script, **options):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(caller(script, **options), capture_output=True, text=True, check=False, timeout=60, env=env)


def start(script, **options):
    """Start a caller in a session of its own and wait until `script` has printed a line."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.Popen(
        caller(script, **options), stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_end(process):
    """Return the exit code; the pipe must close, too."""
    with process:
        return process.wait(15)


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("srun exit 3", 2)])
def test_the_exit_code_is_the_commands(script, code):
    assert run(script).returncode == code


def test_streams_directory_and_environment_are_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOUR", "green")
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # of a real job in which this may run
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        caller("cat; pwd; echo $COLOUR $SLURM_JOB_ID; echo oops >&2"),
        input="hello\n",
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert done.stdout == f"hello\n{tmp_path}\ngreen\n"
    assert done.stderr == "oops\n"


def test_every_node_is_a_host_of_its_own():
    script = """
    srun -N3 bash -c 'echo $(hostname) $(getent ahostsv4 $(hostname) | head -1 | cut -d" " -f1) $(getent ahostsv4 n3 | head -1 | cut -d" " -f1)
    touch /dev/shm/of_$(hostname); ls /dev/shm; cat /proc/1/comm > /dev/null; echo $(ls /proc | grep -c "^[0-9]") >&2' | sort
    """
    done = run(script, nodes=3)
    assert done.stdout.splitlines() == [
        "n1 10.231.7.1 10.231.7.3",
        "n2 10.231.7.2 10.231.7.3",
        "n3 10.231.7.3 10.231.7.3",
        "of_n1",
        "of_n2",
        "of_n3",
    ]
    assert all(int(processes) < 12 for processes in done.stderr.split())


def test_nodes_reach_each_other_on_the_same_port():
    serve = "import socket; s = socket.create_server(('', 5000)); c = s.accept()[0]; c.sendall(b'hi from ' + socket.gethostname().encode())"
    script = f"""
    srun -N2 {sys.executable} -c "{serve}" &
    for node in n1 n2; do until timeout 2 cat </dev/tcp/$node/5000 2>/dev/null; do sleep 0.05; done; echo; done; wait
    """
    assert run(script).stdout == "hi from n1\nhi from n2\n"


def test_an_unknown_name_is_refused_at_once():
    began = time.monotonic()
    assert run("getent hosts nowhere.example; srun getent hosts nowhere.example").returncode == 2
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("gpus", "seen"), [(0, "none"), (2, "0,1"), (4, "0,1,2,3")])
def test_fake_gpus_are_handed_out(gpus, seen):
    ask = f"--gpus-per-node={gpus}" if gpus else ""
    assert (
        run(f"srun -N1 {ask} bash -c 'echo ${{CUDA_VISIBLE_DEVICES:-none}}'", gpus_per_node=gpus).stdout == f"{seen}\n"
    )


def test_the_network_of_the_machine_is_untouched():
    interfaces = set(os.listdir("/proc/sys/net/ipv4/conf"))
    inside = run("ls /proc/sys/net/ipv4/conf; cat /proc/net/route").stdout
    assert set(os.listdir("/proc/sys/net/ipv4/conf")) == interfaces
    assert "v1.1" in inside
    assert not (interfaces - {"all", "default", "lo"}) & set(inside.split())


def test_memory_and_cpus_of_a_big_node_are_accepted_and_too_many_nodes_refused():
    assert run("srun -N2 --mem=500G --cpus-per-task=64 true", cpus_per_node=64).returncode == 0
    done = run("sbatch -N3 --wrap true")
    assert done.returncode == 1
    assert "Node count specification invalid" in done.stderr


def test_a_preemptor_requeues_what_it_preempts(tmp_path):
    done = run(
        f"""
        job=$(sbatch --parsable -N2 --exclusive --requeue -o {tmp_path}/out --wrap 'srun sleep 60')
        until squeue -h -t running -o %i | grep -q $job; do sleep 0.05; done
        srun -p urgent -N2 hostname >/dev/null && scontrol -o show job $job | grep -o 'Restarts=1'
        """
    )
    assert done.stdout == "Restarts=1\n"


def test_private_tmp(place):
    script = (
        "touch /tmp/on_login; srun -N2 bash -c 'ls /tmp | grep -v hp-; touch /tmp/of_$(hostname)'; rm /tmp/on_login"
    )
    assert run(script, private_tmp=True).stdout == ""
    assert not list(Path("/tmp").glob("of_n*"))


@pytest.mark.usefixtures("slurm_accounting")
def test_accounting_knows_a_finished_job():
    done = run(
        """
        job=$(sbatch --parsable -N2 --gpus-per-node=1 -o /dev/null --wrap 'srun true')
        for i in $(seq 100); do sacct -X -n -P -j $job -o JobName,State | grep -q 'wrap|COMPLETED' && break; sleep 0.1; done
        sacct -X -n -P -j $job -o JobID,JobName,State,NodeList,AllocTRES
        """,
        accounting=True,
    )
    fields = done.stdout.strip().split("|")
    assert fields[:4] == ["1", "wrap", "COMPLETED", "n[1-2]"]
    assert "gres/gpu=2" in fields[4]


def test_two_at_once_do_not_meet():
    both = [start("echo ready; read -t 20 line <&3; srun -N2 hostname; squeue -h -t all -o %i") for _ in range(2)]
    outputs = [process.communicate(timeout=30)[0] for process in both]
    assert [sorted(output.split()) for output in outputs] == [["1", "n1", "n2"]] * 2


def test_one_inside_another():
    inner = " ".join(f"'{word}'" if " " in word or "{" in word else word for word in caller("x").copy()[:1])
    script = f'{inner} -c "$CALL" \'{{"nodes": 3, "gpus_per_node": 0}}\' sinfo -h -p main -o %D; sinfo -h -p main -o %D'
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "CALL": CALL}
    done = subprocess.run(caller(script), capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "3\n2\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_nothing_is_left(number):
    process = start("echo ready; exec sleep 60")
    process.send_signal(number)
    assert wait_for_end(process) == 128 + number


def test_a_command_may_tidy_up_when_it_is_told_to_stop():
    process = start("trap 'exit 9' TERM; echo ready; sleep 60 & wait")
    process.send_signal(signal.SIGTERM)
    assert wait_for_end(process) == 9


def test_a_command_that_ignores_term_is_killed():
    process = start("trap '' TERM; echo ready; sleep 60; sleep 60")
    process.send_signal(signal.SIGTERM)
    assert wait_for_end(process) == 137


def test_an_ignored_hangup_stays_ignored():
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    argv = ["nohup", *caller("echo ready; sleep 0.5; exit 4")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert wait_for_end(process) == 4


def test_kill_9_of_the_caller_leaves_nothing():
    process = start("srun -N2 sleep 60 & sbatch -N2 --wrap 'sleep 60' >/dev/null; setsid sleep 60 & echo ready; wait")
    process.kill()
    assert wait_for_end(process) == -9


def test_kill_9_of_the_holder_ends_everything_and_the_next_start_removes_the_directory(place):
    process = start("setsid sleep 60 & echo ready; wait")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGSTOP)  # else it would tidy up itself
    os.kill(int(children[0]), signal.SIGKILL)
    process.kill()
    assert wait_for_end(process) == -9
    (left,) = place.glob("hpctrain-sandbox-*")
    os.utime(left, (0, 0))
    assert run("true").returncode == 0
    assert not left.exists()


def test_a_daemon_that_dies_is_named_with_its_last_words_and_nothing_is_left(tmp_path, monkeypatch):
    fake = tmp_path / "slurmctld"
    fake.write_text("#!/bin/sh\necho 'fatal: out of cheese' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        cluster.run(["true"], nodes=2, gpus_per_node=0)
    assert str(caught.value) == "sandbox: slurmctld did not start\nslurmctld.out.log: fatal: out of cheese"
    assert time.monotonic() - began < 3


def test_refused_namespaces_are_told_with_a_cure(tmp_path, monkeypatch):
    fake = tmp_path / "unshare"
    fake.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError) as caught:
        cluster.run(["true"], nodes=2, gpus_per_node=0)
    assert caught.value.message == (
        "sandbox: namespaces are refused here: unshare: unshare failed: Operation not permitted"
    )
    assert ("--privileged" if os.geteuid() == 0 else "sysctl") in caught.value.hint


@pytest.fixture
def ordinary_user(place):
    """A function that runs Python code as an ordinary user, with an interpreter and a package it may read."""
    if os.geteuid() != 0:
        pytest.skip("an ordinary user runs these tests already")
    shutil.copytree(PACKAGE, place / "hpctrain", ignore=shutil.ignore_patterns("__pycache__"))
    become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
    home = place / "home"
    home.mkdir()
    shutil.chown(home, "nobody", "nogroup")
    env = {**os.environ, "PYTHONPATH": str(place), "HOME": str(home), "XDG_STATE_HOME": str(home)}
    readable = (sys.executable, "/usr/bin/python3")
    # it must be able to start itself again, without the rights that setpriv still has
    test = "import subprocess, sys; sys.exit(sys.version_info < (3, 11) or subprocess.call([sys.executable, '-c', '']))"

    def call(python, *arguments):
        argv = [*become, python, "-B", *arguments]
        return subprocess.run(argv, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=60)

    for python in readable:
        if Path(python).exists() and _permitted(lambda: call(python, "-c", test).returncode == 0):
            return lambda *arguments: call(python, *arguments)
    return pytest.skip("no Python 3.11 here that an ordinary user may execute")


def _permitted(question):
    try:
        return question()
    except PermissionError:
        return False


def test_an_ordinary_user_has_one_too(ordinary_user):
    script = "id -un; srun -N2 hostname | sort; srun -N1 --gpus-per-node=2 bash -c 'echo $CUDA_VISIBLE_DEVICES; id -un'"
    done = ordinary_user("-c", CALL, "{'nodes': 2, 'gpus_per_node': 2}", "bash", "-c", script)
    assert done.stdout.split() == ["nobody", "n1", "n2", "0,1", "nobody"], done.stderr


def test_jobs_of_an_ordinary_user_have_no_more_rights_than_the_user(ordinary_user):
    script = "grep CapEff /proc/self/status; srun grep CapEff /proc/self/status"
    done = ordinary_user("-c", CALL, "{'nodes': 1, 'gpus_per_node': 0}", "bash", "-c", script)
    assert done.stdout.split() == ["CapEff:", "0" * 16] * 2, done.stderr


def test_an_ordinary_user_brings_one_up_and_down(ordinary_user, place):
    code = """
import subprocess
from hpctrain.sandbox import cluster
sandbox = cluster.up(nodes=2, gpus_per_node=1)
print(subprocess.run([sandbox.bin / "srun", "-N2", "hostname"], capture_output=True, text=True).stdout.split())
print(subprocess.run([sandbox.bin / "salloc", "-Q", "-N2", sandbox.bin / "srun", "id", "-un"], capture_output=True, text=True).stdout.split())
cluster.node("crash", "n2")
cluster.node("up", "n2")
print([node["name"] for node in cluster.status()["nodes"]], cluster.down())
"""
    done = ordinary_user("-c", code)
    lines = done.stdout.splitlines()
    assert sorted(eval(lines[0])) == ["n1", "n2"], done.stderr  # noqa: S307 (what the code above printed)
    assert lines[1:] == ["['nobody', 'nobody']", "['n1', 'n2'] True"], done.stderr

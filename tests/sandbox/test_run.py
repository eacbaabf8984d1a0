"""`run`: a sandbox around one command."""

import contextlib
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hpctrain
from hpctrain.errors import ClusterError
from hpctrain.sandbox import cluster

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

PACKAGE = Path(hpctrain.__file__).parent
CALL = "import sys; from hpctrain.sandbox import cluster; sys.exit(cluster.run(sys.argv[2:], **eval(sys.argv[1])))"


def caller(script: str, **options: Any) -> list[str]:
    """Return the command line of a process that calls `run`."""
    return [sys.executable, "-c", CALL, repr({"nodes": 2, "gpus_per_node": 2} | options), "bash", "-c", script]


def env(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **more}


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = caller(script, **options)
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env())


def start(script: str, *prefix: str) -> "subprocess.Popen[str]":
    """Start a caller in a session of its own and wait until `script` has printed a line."""
    argv = [*prefix, *caller(script)]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env(), start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_end(process: "subprocess.Popen[str]") -> int:
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
    done = subprocess.run(
        caller("cat; pwd; echo $COLOUR $SLURM_JOB_ID; echo oops >&2"),
        input="hello\n",
        capture_output=True,
        text=True,
        check=True,
        env=env(),
    )
    assert done.stdout == f"hello\n{tmp_path}\ngreen\n"
    assert done.stderr == "oops\n"


def test_every_node_is_a_host_of_its_own():
    on_a_node = """
    address() { getent ahostsv4 "$1" | cut -d" " -f1 | uniq; }
    touch /dev/shm/of_$(hostname)
    echo $(hostname) $(address $(hostname)) $(address n3) $(ls /dev/shm) $(( $(ls /proc | grep -c "^[0-9]") < 12 ))
    """
    done = run(f"srun -N3 bash -c '{on_a_node}' | sort", nodes=3)
    assert done.stdout.splitlines() == [
        "n1 10.231.7.1 10.231.7.3 of_n1 1",
        "n2 10.231.7.2 10.231.7.3 of_n2 1",
        "n3 10.231.7.3 10.231.7.3 of_n3 1",
    ]


def test_nodes_reach_each_other_on_the_same_port():
    serve = (
        "import socket; server = socket.create_server(('', 5000)); "
        "server.accept()[0].sendall(b'hi from ' + socket.gethostname().encode())"
    )
    fetch = "until timeout 2 cat </dev/tcp/$node/5000 2>/dev/null; do sleep 0.05; done; echo"
    script = f'srun -N2 {sys.executable} -c "{serve}" & for node in n1 n2; do {fetch}; done; wait'
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
    interfaces = {path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()}
    inside = run("ls /proc/sys/net/ipv4/conf").stdout.split()
    assert {path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()} == interfaces
    assert sorted(inside) == ["all", "br0", "default", "lo", "v1.1", "v2.1"]


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
        until sacct -X -n -P -j $job -o JobName,State | grep -q 'wrap|COMPLETED'; do sleep 0.1; done
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
    count = "sinfo -h -p main -o %D"
    script = f"{shlex.join(caller(count, nodes=3))}; {count}"
    assert run(script).stdout == "3\n2\n"


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
    process = start("echo ready; sleep 0.5; exit 4", "nohup")
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
    environment = env(PYTHONPATH=str(place), HOME=str(home), XDG_STATE_HOME=str(home))
    # it must be able to start itself again, without the rights that setpriv still has
    test = "import subprocess, sys; sys.exit(sys.version_info < (3, 11) or subprocess.call([sys.executable, '-c', '']))"

    def call(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [*become, python, "-B", *arguments]
        return subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=60)

    for python in (sys.executable, "/usr/bin/python3"):
        if Path(python).exists() and call(python, "-c", test).returncode == 0:
            return partial(call, python)
    return pytest.skip("no Python 3.11 here that an ordinary user may execute")


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
srun, salloc = sandbox.bin / "srun", sandbox.bin / "salloc"
for command in [srun, "-N2", "hostname"], [salloc, "-Q", "-N2", srun, "id", "-un"]:
    print(sorted(subprocess.run(command, capture_output=True, text=True).stdout.split()))
cluster.node("crash", "n2")
cluster.node("up", "n2")
print([node["name"] for node in cluster.status()["nodes"]], cluster.down())
"""
    done = ordinary_user("-c", code)
    assert done.stdout.splitlines() == ["['n1', 'n2']", "['nobody', 'nobody']", "['n1', 'n2'] True"], done.stderr


@pytest.mark.parametrize(("keys", "told"), [(b"\x03", "interrupted once"), (b"\x04", "end of file")])
def test_the_command_has_the_terminal(keys, told):
    script = (
        "import time\n"
        "def ask():\n"
        "    try: print('ready', flush=True); input()\n"
        "    except EOFError: return 'end of file'\n"
        "    except KeyboardInterrupt:\n"
        "        try: time.sleep(0.5); return 'interrupted once'\n"
        "        except KeyboardInterrupt: return 'interrupted twice'\n"
        "print(ask())"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        argv = [*caller("")[:-3], sys.executable, "-c", script]
        os.execve(argv[0], argv, env())  # noqa: S606 (none is wanted)
    seen = b""
    with os.fdopen(terminal, "r+b", buffering=0) as screen, contextlib.suppress(OSError):  # EIO at the end
        while b"ready" not in seen:
            seen += screen.read(100)
        screen.write(keys)
        while text := screen.read(100):
            seen += text
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert told in seen.decode()

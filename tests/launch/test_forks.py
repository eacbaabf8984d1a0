"""Forked ranks: which may be forked, and that a script cannot tell."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpctrain.config.load import load
from hpctrain.launch.forks import can_fork

# what a program can see of how it was started, without what differs between any two runs
SEEN = """
import torch
import json, os, random, signal, sys, threading, numpy
fds = {name: os.readlink(f"/proc/self/fd/{name}") for name in ("0", "1", "2")}
handlers = {n: str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals() if n not in (9, 19)}
seen = {
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": __file__, "spec": __spec__, "package": __package__,
    "globals": sorted(set(globals()) - {"__annotations__"}), "main": sys.modules["__main__"].__file__,
    "cwd": os.getcwd(), "executable": sys.executable, "flags": str(sys.flags), "unbuffered": sys.stdout.write_through,
    "group": os.getpgid(0) == os.getpid(), "session": os.getsid(0), "fds": fds, "handlers": handlers,
    "blocked": list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), "umask": os.umask(0o77),
    "threads": [threading.active_count(), len(os.listdir("/proc/self/task")), torch.get_num_threads()],
    "gc": __import__("gc").isenabled(), "excepthook": sys.excepthook is sys.__excepthook__,
    "env": {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "HPCTRAIN_SUPERVISOR", "OLDPWD")},
    "descriptors": sorted(fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")),
}
print(json.dumps(seen, default=str))
print(json.dumps([random.random(), float(numpy.random.rand()), os.urandom(4).hex(), float(torch.rand(1))]))
"""  # noqa: E501 - a program


def config(project, program, command="[python, program.py]"):
    (project / "program.py").write_text(program)
    (project / "small.yaml").write_text(f"name: small\ncommand: {command}\n")
    return "small.yaml"


def logs(project, name, stream="out"):
    return [path.read_text() for path in sorted((project / name).glob(f"*/attempts/1/logs/rank_*.{stream}"))]


@pytest.mark.parametrize(
    ("program", "forked"),
    [
        ("import torch\n", True),
        ("import os\nimport torch.nn as nn\nrank = int(os.environ['RANK'])\n", True),
        ("from torch import nn\nimport os\nif 'RANK' in os.environ: print(os.environ.get('RANK', 0))\n", True),
        ("import os, torch\nimport torch\nprint(os.environ['A'] == '1')\n", True),
        ("import numpy\n", False),
        ("import torchvision\n", False),
        ("import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch\n", False),
        ("import os\nos.environ['A']='1'\nimport torch\n", False),
        ("import os\nos.environ['A'] |= '1'\nimport torch\n", False),
        ("import os\nos.environ.setdefault('A', '1')\nimport torch\n", False),
        ("import os\nos.environ.update(A='1')\nimport torch\n", False),
        ("import os\ndel os.environ['A']\nimport torch\n", False),
        ("import os\nos.putenv('A', '1')\nimport torch\n", False),
        ("from os import environ\nimport torch\nenviron['A'] = '1'\n", False),
        ("import os\nenv = os.environ\nenv['A'] = '1'\nimport torch\n", False),
    ],
)
def test_only_scripts_that_leave_the_environment_alone_are_forked(project, monkeypatch, program, forked):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert can_fork(load(Path(config(project, program)), []).config) == forked


@pytest.mark.parametrize(
    ("command", "overrides", "forked"),
    [
        (f"[{sys.executable}, program.py, --epochs, '3']", [], True),
        ("[python, program.py]", ["dist.fork=false"], False),
        ("[python, program.py]", [f"env.python={sys.executable}"], False),
        ("[python, -u, program.py]", [], False),
        ("[python, -m, program]", [], False),
        ("[/usr/bin/env, program.py]", [], False),
        ("[bash, program.py]", [], False),
        ("[python]", [], False),
        ("[python, missing.py]", [], False),
    ],
)
def test_only_plain_python_scripts_are_forked(project, monkeypatch, command, overrides, forked):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert can_fork(load(Path(config(project, "import torch\n", command)), overrides).config) == forked


@pytest.mark.torch
def test_a_script_sees_the_same_whether_its_rank_is_forked_or_not(project, hpctrain):
    name = config(project, SEEN, f"[{sys.executable}, program.py, --epochs, '3']")
    found, drawn = {}, {}
    for fork in ("true", "false"):
        done = hpctrain(
            "run", name, "--ranks", "2", f"dist.fork={fork}", f"runs={fork}", "--", stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        texts = logs(project, fork)
        run = next((project / fork).iterdir())
        found[fork] = [text.splitlines()[0].replace(str(run), "RUN").replace(run.name, "NAME") for text in texts]
        drawn[fork] = [json.loads(text.splitlines()[1]) for text in texts]
    for forked, started in zip(found["true"], found["false"], strict=True):
        assert json.loads(forked) == json.loads(started)
    first, second = drawn["true"]
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, False, False, True], "torch has a fixed seed"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("program", "code", "error"),
    [
        ("import torch, sys\nsys.exit(3)\n", 3, ""),
        ("import torch\nraise SystemExit('no')\n", 1, "no\n"),
        ("import torch\nassert torch.ones(1) == 2, 'one'\n", 1, None),
        ("import torch, os\nos.abort()\n", 134, ""),
        ("import torch\nx = (\n", 1, None),
    ],
)
def test_a_forked_script_ends_as_any_other(project, program, code, error, hpctrain):
    errors = []
    program = program.replace("import torch,", "import torch\nimport")
    for fork in ("true", "false"):
        name = config(project, program, f"[{sys.executable}, program.py]")
        done = hpctrain("run", name, f"dist.fork={fork}", f"runs={fork}", "restart.rank_killed=0")
        assert done.returncode == 4
        [outcome] = [json.loads(path.read_text()) for path in (project / fork).glob("*/attempts/1/outcome.json")]
        assert outcome["exit_code"] == code
        [text] = logs(project, fork, "err")
        run = next((project / fork).iterdir())
        errors.append(text.partition("world proven")[2].partition("\n")[2].replace(str(run), "RUN"))
    assert errors[0] == errors[1]
    assert error is None or errors[0] == error


@pytest.mark.torch
def test_a_forked_script_may_start_processes_of_its_own(project, hpctrain):
    program = (
        "import torch\nimport multiprocessing as mp\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'fork'):\n"
        "        with mp.get_context(method).Pool(1) as pool: print(pool.map(double, [1, 2]), flush=True)\n"
    )
    done = hpctrain("run", config(project, program, f"[{sys.executable}, program.py]"))
    assert done.stdout == "[2, 4]\n[2, 4]\n", done.stderr


@pytest.mark.torch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_run_ends_while_torch_is_imported(project, number):
    name, mark = config(project, "import torch\n", f"[{sys.executable}, program.py]"), f"fork{os.getpid()}"
    argv = [
        sys.executable,
        "-m",
        "hpctrain",
        "run",
        name,
        f"name={mark}",
        f"command=[{sys.executable}, program.py, {mark}]",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0) as launcher:
        deadline = time.monotonic() + 20
        while not any("forkserver" in line for line in _command_lines(mark)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.2)
        launcher.send_signal(number)
        launcher.wait(timeout=20)
    deadline = time.monotonic() + 5
    while left := _command_lines(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def _command_lines(mark):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and "pytest" not in line:
            found.append(line)
    return found


@pytest.mark.torch
def test_a_server_that_dies_costs_time_and_nothing_else(project, hpctrain):
    (project / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'forkserver' in ' '.join(sys.orig_argv): os._exit(1)\n"
    )  # fmt: skip
    name = config(project, "import torch\nprint('trained')\n", f"[{sys.executable}, program.py]")
    done = hpctrain("run", name, "--ranks", "2", env={**os.environ, "PYTHONPATH": str(project)})
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


@pytest.mark.torch
def test_a_rank_that_comes_to_run_only_after_its_server_has_ended_starts_all_the_same(project, hpctrain):
    (project / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'forkserver' in ' '.join(sys.orig_argv): os.register_at_fork(after_in_child=lambda: time.sleep(0.5))\n"
    )
    name = config(project, "import torch\nprint('trained')\n", f"[{sys.executable}, program.py]")
    path = os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = hpctrain("run", name, "--ranks", "2", env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr

"""Root is needed for nothing but installing packages: the same commands as an ordinary user."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hpctrain

pytestmark = [pytest.mark.slurm, pytest.mark.torch, pytest.mark.timeout(180)]

CONFIG = """
name: plain
slurm: {nodes: 2, ranks_per_node: 1, time: 00:05:00}
data: {dataset: digits}
model: {name: mlp}
batch: {global: 60}
optim: {lr: 0.1}
train: {epochs: 1}
"""


@pytest.fixture
def as_user(tmp_path):
    """Call hpctrain with a user id that is not root's and no capabilities."""
    if os.getuid() != 0:
        user = []
    elif subprocess.run(["unshare", "--user", "true"], check=False).returncode == 0:
        # `daemon`, since Slurm wants a user with a name; not by setpriv, which may leave no right to read this Python
        user = ["unshare", "--user", "--map-user=1", "--map-group=1", "--"]
    else:
        user = ["setpriv", "--reuid=1", "--regid=1", "--clear-groups", "--"]
        shutil.chown(tmp_path, 1, 1)
    (tmp_path / "plain.yaml").write_text(CONFIG)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "HPCTRAIN_"))}
    package = str(Path(hpctrain.__file__).parents[1])
    env = {**kept, "PYTHONPATH": package, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}

    def call(*command):
        done = subprocess.run(
            [*user, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert call("id", "-u").strip() != "0"
    return call


HPCTRAIN = (sys.executable, "-m", "hpctrain")


def test_run_and_submit_on_this_machine(as_user):
    assert "accuracy" in as_user(*HPCTRAIN, "run", "plain.yaml", "--ranks", "2")
    assert "accuracy" in as_user(*HPCTRAIN, "submit", "plain.yaml", "--scheduler", "local", "--follow")
    assert [row["state"] for row in json.loads(as_user(*HPCTRAIN, "list", "--json"))] == ["COMPLETED"] * 2


def test_submit_in_a_sandbox(as_user, slurm_packages):
    sandbox = (*HPCTRAIN, "sandbox", "run", "--nodes", "2", "--gpus-per-node", "2", "--")
    out = as_user(*sandbox, *HPCTRAIN, "submit", "plain.yaml", "--scheduler", "slurm", "--follow")
    assert "accuracy" in out


def test_a_sandbox_that_is_up_is_used_and_goes_down(as_user, slurm_packages):
    # in one shell: each call of `as_user` may be in a user namespace of its own, which cannot enter another's
    hpc = f"{sys.executable} -m hpctrain"
    submit = f"{hpc} submit plain.yaml --scheduler slurm --follow"
    out = as_user("bash", "-c", f"{hpc} sandbox up --nodes 2 && {submit}; code=$?; {hpc} sandbox down; exit $code")
    assert "accuracy" in out

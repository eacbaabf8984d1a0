"""A disk that fills up under a real run, supervisor and all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import small_disk

pytestmark = pytest.mark.torch


def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    private = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    if subprocess.run([*private, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    program = [*private, sys.executable, "-m", "tests.chaos.small_disk", str(disk)]
    done = subprocess.run(
        program, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first"] == 4
    assert (found["outcome"]["verdict"], found["outcome"]["cause"]) == ("failed", "disk_full")
    assert "was not saved: No space left on device" in found["outcome"]["message"]
    assert "MiB are free there; make room" in found["outcome"]["message"]
    assert "No space left on device" in found["told"]
    assert len(found["left"]) == 1
    assert found["second"] == 0, found["again"]
    assert f"going on from step {int(found['left'][0][5:])}," in found["log"]
    (tmp_path / "c.yaml").write_text(small_disk.CONFIG.format(runs=tmp_path / "runs"))
    twin = small_disk.run(tmp_path, tmp_path / "c.yaml", "hpctrain", "run")
    told = twin.communicate(timeout=120)[1]
    assert twin.returncode == 0, told
    files = {path.name: path.read_bytes().hex() for path in tmp_path.glob("runs/*/ckpt/step_00002000/*.safetensors")}
    assert files == found["files"]
    assert list(disk.iterdir()) == []  # nothing was written beside the small disk

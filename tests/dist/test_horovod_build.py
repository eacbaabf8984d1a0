"""What is seen of an installed Horovod without importing it."""

import importlib.metadata
import importlib.util
import json
import sys

import pytest

from hpctrain.dist import horovod_build


@pytest.fixture
def install(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "horovod", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"torch": "2.13.0+cpu"}[name])

    def put(torch="2.13.0+cpu", library=b"...libmpi.so.40..."):
        (tmp_path / "horovod/torch").mkdir(parents=True)
        (tmp_path / "horovod/__init__.py").write_text("raise AssertionError('imported')")
        (tmp_path / "horovod/metadata.json").write_text(json.dumps({"pytorch": torch}))
        (tmp_path / "horovod/torch/mpi_lib_v2.cpython-311-x86_64-linux-gnu.so").write_bytes(library)

    return put


@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0", "2.13.0+cu130"])
@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_one_that_fits_is_no_problem(install, torch, backend):
    install(torch)
    assert horovod_build.problem(backend) is None


def test_another_torch_is_named_with_the_ways_out(install):
    install("2.9.1+cu126")
    what, todo = horovod_build.problem("gloo")
    assert what.endswith("was built for torch 2.9.1+cu126, and torch is 2.13.0+cpu now")
    assert todo.startswith("build it again: bash jobs/build-horovod.sh")
    assert todo.endswith("or pip install torch==2.9.1")


def test_one_without_mpi_does_for_gloo_alone(install):
    install(library=b"gloo")
    assert horovod_build.problem("gloo") is None
    what, todo = horovod_build.problem("mpi")
    assert what.endswith("was built without MPI, so each rank would be a world of its own")
    assert "dist.backend=gloo" in todo


def test_a_missing_one_names_the_script(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    what, todo = horovod_build.problem("gloo")
    assert what == f"{sys.executable} has no Horovod"
    assert todo.startswith("build it: bash jobs/build-horovod.sh")

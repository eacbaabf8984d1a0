import difflib
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from hpctrain.config.schema import Restart, Slurm
from hpctrain.errors import ConfigError, UsageError
from hpctrain.launch.render import OPTIONS, allowed_text, fill, mpi_type, render, template, template_file
from hpctrain.rundir import RunDir

GOLDEN = Path(__file__).parent / "golden"
RENEW = "HPCTRAIN_RENEW_GOLDEN=1 python -m pytest tests/launch/test_render.py"
RUN = RunDir(Path("/scratch/me/runs/mini-0102-030405-abcd"))

COMMAND = "name: mine\ncommand: [python, train.py, --epochs, '3']\n"

CONFIGS: dict[str, list[str]] = {
    "minimal": [],
    "slurm": [
        "slurm.partition=gpu,long", "slurm.account=proj42", "slurm.qos=normal", "slurm.nodes=4",
        "slurm.gpus_per_node=4", "slurm.cpus_per_task=8", "slurm.time=12:00:00", "slurm.mem=64G",
        "slurm.constraint=a100|h100&ib", "slurm.gres=nvme:1", "slurm.exclude=n[1-4],gpu07", "slurm.nodelist=n9",
        "slurm.reservation=maint", "slurm.dependency=afterok:1234:5678", "slurm.mail_type=END,FAIL",
        "slurm.mail_user=me@example.org", "slurm.signal_s=300",
        "restart.node_failure=0", "restart.preempted=2", "restart.time_limit=3", "restart.rank_killed=4",
    ],
    "torchrun": [
        "dist.launcher=torchrun", "slurm.nodes=2", "slurm.ranks_per_node=4", "slurm.cpus_per_task=2",
        "slurm.time=0:04:00",
    ],
    "mpirun": [
        "dist.launcher=mpirun", "slurm.nodes=2", "slurm.ranks_per_node=4", "slurm.cpus_per_task=2",
        "env.modules=[openmpi]",
    ],
    "horovod": [
        "dist.strategy=horovod", "dist.launcher=horovodrun", "slurm.nodes=2", "slurm.gpus_per_node=4",
        "slurm.cpus_per_task=2",
    ],
    "srun_mpi": ["dist.strategy=horovod", "dist.backend=mpi", "slurm.nodes=2"],
    "environment": [
        "env.modules=[cuda/12.4, gcc]", "env.venv=/home/me/it's my venv",
        "env.setup=['export NCCL_DEBUG=INFO  # @{run}', 'source \"$HOME/setup.sh\" && date']",
    ],
    "apptainer": [
        "env.container.image=/images/torch(2).sif", "env.container.mounts=[/data:/data:ro, /opt]",
        "data.dataset=mnist", "data.path=/scratch/mnist", "slurm.gpus_per_node=2",
    ],
    "pyxis": [
        "env.container.image=nvcr.io#nvidia/pytorch:25.01-py3", "env.container.runtime=pyxis",
        "env.container.mounts=[/data:/data:ro, /opt]", "env.python=/usr/bin/python3",
    ],
    "command": ["slurm.time=1-00", "restart.node_failure=0", "restart.preempted=0", "restart.time_limit=0",
                "restart.rank_killed=0"],
}  # fmt: skip


@pytest.fixture
def rendered(make):
    def render_named(name: str) -> str:
        overrides = CONFIGS[name]
        loaded, plan = make(*overrides, text=COMMAND) if name == "command" else make(*overrides)
        return render(loaded, plan, RUN, python="/opt/python 3/bin/python3")

    return render_named


@pytest.mark.parametrize("name", CONFIGS)
def test_the_script_is_the_golden_one(rendered, name):
    script, golden = rendered(name), GOLDEN / f"{name}.sbatch"
    if os.environ.get("HPCTRAIN_RENEW_GOLDEN"):
        golden.write_text(script)
    expected = golden.read_text() if golden.exists() else ""
    diff = "".join(
        difflib.unified_diff(expected.splitlines(keepends=True), script.splitlines(keepends=True), golden.name, "now")
    )
    assert not diff, f"{diff}\nif that is meant: {RENEW}"


@pytest.mark.parametrize("name", CONFIGS)
def test_bash_and_shellcheck_accept_the_script(rendered, name, tmp_path):
    script = tmp_path / "job.sbatch"
    script.write_text(rendered(name))
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("shellcheck is not installed")
        pytest.skip("shellcheck is not installed")
    # SC1091: the user's own lines name files that are not here
    done = subprocess.run(["shellcheck", "-e", "SC1091", script], capture_output=True, text=True, check=False)
    assert not done.stdout


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["dist.mpi=pmi2"], "pmi2"),
        (["dist.backend=mpi"], "pmix"),
        (["dist.backend=mpi", "dist.mpi=pmix_v4"], "pmix_v4"),
        (["dist.launcher=mpirun"], "none"),
        (["dist.launcher=mpirun", "dist.backend=mpi"], "none"),
        (["dist.launcher=torchrun"], None),
    ],
)
def test_srun_offers_an_mpi_to_ranks_that_want_one_and_none_to_relays(make, overrides, expected):
    loaded, plan = make(*overrides)
    assert mpi_type(loaded.config, plan) == expected
    script = render(loaded, plan, RUN, python="python")
    assert (f"--label --mpi={expected} " in script) if expected else ("--mpi" not in script)


def test_the_template_follows_the_strategy(make):
    assert template(make()[0]).name == "ddp.sbatch"
    assert template(make("dist.strategy=horovod")[0]).name == "horovod.sbatch"
    assert template(make("dist.strategy=horovod")[0]).read_text() == template_file().read_text()


def options(make, *overrides: str, text: str | None = None) -> list[str]:
    loaded, plan = make(*overrides, text=text) if text else make(*overrides)
    lines = render(loaded, plan, RUN, python="python").splitlines()
    assert not [line for line in lines[lines.index("#") :] if line.startswith("#SBATCH")]
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


@pytest.mark.parametrize(
    ("time", "signal"),
    [("12:00:00", 120), ("0:08:00", 120), ("0:04:00", 60), ("0:00:03", 1), ("1-00", 120), (None, None)],
)
def test_the_warning_comes_two_minutes_or_a_quarter_before_the_limit(make, time, signal):
    found = options(make, *([f"slurm.time={time}"] if time else []))
    assert [text for text in found if "signal" in text] == ([f"--signal=USR2@{signal}"] if signal else [])


def test_a_command_is_signalled_only_if_asked(make):
    assert not [text for text in options(make, "slurm.time=12:00:00", text=COMMAND) if "signal" in text]
    assert "--signal=USR2@30" in options(make, "slurm.time=12:00:00", "slurm.signal_s=30", text=COMMAND)


CAUSES = Restart.__struct_fields__


@pytest.mark.parametrize("cause", [*CAUSES, None])
def test_the_job_can_be_requeued_while_any_cause_has_a_budget(make, cause):
    budgets = [f"restart.{name}={int(name == cause)}" for name in CAUSES]
    assert ("--requeue" if cause else "--no-requeue") in options(make, *budgets)


HOSTILE = {
    "newline": "x\n#SBATCH --uid=0",
    "trailing newline": "gpu\n",
    "carriage return": "x\r--uid=0",
    "NUL": "x\0y",
    "escape": "x\x1b[2J",
    "single quote": "x' --uid=0 '",
    "double quote": 'x" --uid=0 "',
    "backslash": "x\\ --uid=0",
    "command": "$(touch pwned)",
    "back quotes": "`touch pwned`",
    "comment": "a#b",
    "pattern": "%j/%N",
    "option": "--uid=0",
    "blank": "x --uid=0",
    "semicolon": "x;touch pwned",
    "not ASCII": "\u0661\u0662",
    "empty": "",
    "long": "a" * 65536,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("field", [*OPTIONS, "name"])
def test_no_hostile_text_reaches_an_sbatch_line(make, field, text):
    # by hand, because `load` refuses such text already
    loaded, plan = make()
    if field == "name":
        loaded.config = msgspec.structs.replace(loaded.config, name=text)
    else:
        slurm = msgspec.structs.replace(loaded.config.slurm, **{field: text})
        loaded.config = msgspec.structs.replace(loaded.config, slurm=slurm)
    with pytest.raises(ConfigError) as caught:
        render(loaded, plan, RUN, python="python")
    assert len(str(caught.value)) < 500


def test_every_option_has_its_pattern_in_the_schema():
    for field in OPTIONS:
        pattern, expect = allowed_text(Slurm, field)
        assert pattern
        assert expect


def test_all_refused_values_are_named_at_once(make):
    loaded, plan = make()
    slurm = msgspec.structs.replace(loaded.config.slurm, account="a b", qos="$(x)")
    loaded.config = msgspec.structs.replace(loaded.config, slurm=slurm)
    with pytest.raises(ConfigError) as caught:
        render(loaded, plan, RUN, python="python")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("path", ["/runs/a b", "/runs/%j", "/runs/a#b", "/runs/it's", "/runs/x\ny", "relative"])
def test_a_run_directory_must_be_safe(make, path):
    loaded, plan = make()
    with pytest.raises(UsageError):
        render(loaded, plan, RunDir(Path(path)), python="python")


def test_what_goes_to_the_body_is_quoted(make, tmp_path):
    loaded, plan = make("env.venv=\"/x/$(touch pwned)'; touch pwned; '\"")
    script = render(loaded, plan, RUN, python="python")
    line = next(line for line in script.splitlines() if line.startswith("venv="))
    done = subprocess.run(["bash", "-c", f'{line}\nprintf %s "$venv"'], capture_output=True, text=True, check=True)
    assert done.stdout == "/x/$(touch pwned)'; touch pwned; '"
    assert not list(tmp_path.glob("pwned"))


def test_a_template_lies_in_the_checkout_or_in_the_wheel():
    assert template_file().is_file()


def test_a_sites_template_is_used(make, tmp_path):
    site = tmp_path / "site.sbatch"
    site.write_text(template_file().read_text().replace("umask 077", "umask 077\nmodule load site"))
    loaded, plan = make(f"slurm.template={site}")
    assert "module load site\n" in render(loaded, plan, RUN, python="python")


def test_an_unknown_place_is_named_with_its_line(tmp_path):
    site = tmp_path / "site.sbatch"
    site.write_text("#!/bin/bash\necho user@host ${array[@]} @@{x}\n@{wat}\n")
    with pytest.raises(UsageError) as caught:
        fill(site, {"x": "1", "run": "2"})
    assert str(caught.value) == f"{site}:3: unknown place '@{{wat}}'\n  places are @{{run}}, @{{x}}"


def test_a_missing_place_is_named(tmp_path):
    site = tmp_path / "site.sbatch"
    site.write_text("@{x}\n")
    with pytest.raises(UsageError, match=r"lacks @\{run\}"):
        fill(site, {"x": "1", "run": "2"})


def test_bash_stays_bash_in_a_template(tmp_path):
    text = 'a=("${b[@]}") c=${d:-$e} f=$$ @ @@ me@host "$@" ${@}'
    site = tmp_path / "site.sbatch"
    site.write_text(f"{text} @{{x}}\n")
    assert fill(site, {"x": "@{x} $y"}) == f"{text} @{{x}} $y\n"


def test_a_template_that_cannot_be_read_is_a_users_error(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        fill(tmp_path / "nowhere", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no UTF-8"):
        fill(tmp_path / "binary", {})


def test_a_container_refuses_a_data_path_that_its_runtime_would_split(make):
    loaded, plan = make("env.container.image=/x.sif", "data.dataset=mnist", "data.path=/a,b")
    with pytest.raises(ConfigError, match=r"data\.path"):
        render(loaded, plan, RUN, python="python")


def test_the_next_script_of_a_run_asks_for_what_was_measured(tmp_path, make):
    loaded, plan = make("slurm.time=01:00:00")
    run = RunDir(tmp_path / "run-1")

    def asked(loaded=loaded):
        script = render(loaded, plan, run, python="python")
        return [line for line in script.split("\n") if line.startswith("#SBATCH --signal")]

    assert asked() == ["#SBATCH --signal=USR2@120"]
    for number, seconds in [(1, 900), (2, 200)]:
        run.attempt(number).mkdir(parents=True)
        run.timing(number).write_bytes(msgspec.json.encode({"grace_s": seconds}))
    run.attempt(3).mkdir()  # saved nothing
    assert asked() == ["#SBATCH --signal=USR2@200"]
    run.timing(2).write_text('{"grace_s": 12}')
    assert asked() == ["#SBATCH --signal=USR2@60"]
    run.timing(2).write_text('{"grace_s": 4000}')
    assert asked() == ["#SBATCH --signal=USR2@1800"]
    given, _ = make("slurm.time=01:00:00", "slurm.signal_s=33")
    assert asked(given) == ["#SBATCH --signal=USR2@33"]

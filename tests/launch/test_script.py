"""The batch script under bash with stand-ins for Slurm's programs: every end of an attempt in milliseconds."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hpctrain
from hpctrain.config.load import dump
from hpctrain.config.schema import Restart
from hpctrain.launch.render import render
from hpctrain.rundir import RunDir, publish, read_json

RUNNING, ENDING = "RUNNING", "COMPLETING"
PREEMPTED = 'echo "0: slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***"'
LATE = 'echo "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***"'
REQUEUED = 'echo "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***"'
LOST = 'echo "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE, SEE ***"'


SCRIPT = "read -r _ _ _ parent _ </proc/$PPID/stat; "  # srun's parent is a subshell of the script


def outcome(**record: object) -> str:
    """Return bash code that leaves an outcome as rank 0 does."""
    text = json.dumps(record, separators=(",", ":"))
    return f"""printf %s '{text}' >"$HPCTRAIN_RUN/attempts/$HPCTRAIN_ATTEMPT/outcome.json\""""


ECHO = outcome(verdict="failed", cause="rank_killed", echo=True, rank=0, host="n1")
GAIN = (  # one step more than the attempt before, and saved
    """printf "\\x0$((HPCTRAIN_ATTEMPT - 1))\\0\\0\\0\\0\\0\\0\\0\\x0$HPCTRAIN_ATTEMPT\\0\\0\\0\\0\\0\\0\\0" """
    """>"$HPCTRAIN_RUN/attempts/$HPCTRAIN_ATTEMPT/steps"; mkdir "$HPCTRAIN_RUN/ckpt/step_0000000$HPCTRAIN_ATTEMPT\""""
)


class Attempt:
    """Runs the script, with what srun and scontrol do given as bash code."""

    def __init__(self, run: RunDir, make: Any, fake: Any) -> None:
        self.run, self._make, self._fake = run, make, fake
        self.calls: dict[str, Path] = {}

    def __call__(
        self,
        srun: str,
        *overrides: str,
        job: str = RUNNING,
        requeue: str = "true",
        fits: str = "true",
        command: bool = False,
        env: dict[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        answers = f"*hostnames*) echo n1; echo n2 ;; requeue*) {requeue} ;;"
        squeue = f"printf '7\\x1f{job}\\x1fNone\\x1f2\\x1fn[1-2]\\x1f0\\x1f0\\n'"
        programs = {"srun": srun, "scancel": "true", "squeue": squeue, "sacct": "exit 1", "sbatch": fits}
        programs["scontrol"] = f'case "$*" in {answers} esac'
        self.calls = {name: self._fake(name, code) for name, code in programs.items()}
        text = {"text": "name: mine\ncommand: ['true']\n"} if command else {}
        loaded, plan = self._make(*overrides, **text)
        publish(self.run.config, dump(loaded.config).encode())
        publish(self.run.plan, msgspec.json.encode(plan))
        publish(self.run.script, render(loaded, plan, self.run, python="python").encode())
        return subprocess.run(
            ["bash", self.run.script],
            env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    def broken_python(self) -> str:
        """Make a folder with a python that cannot import anything; return its path."""
        return str(self._fake("python", "exit 1").parent)

    def requeues(self) -> int:
        return self.calls["scontrol"].read_text().splitlines().count("requeue 7")


@pytest.fixture
def attempt(make, fake, tmp_path):
    return Attempt(RunDir.create(tmp_path / "runs", "mini"), make, fake)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def verdict(run: RunDir, number: int = 1) -> tuple[str | None, str | None]:
    record = read_json(run.outcome(number))
    return record.get("verdict"), record.get("cause")


TRAINING_ENDS = {
    "completed": (outcome(verdict="completed"), RUNNING, ("completed", None), 0, 0),
    "completed, then a rank fails to leave": (
        outcome(verdict="completed") + "; exit 137", RUNNING, ("completed", None), 0, 0
    ),
    "time limit": (outcome(verdict="stopped", cause="time_limit"), RUNNING, ("stopped", "time_limit"), 75, 1),
    "preempted with a grace time": (
        outcome(verdict="stopped", cause="preempted"), RUNNING, ("stopped", "preempted"), 75, 1
    ),
    "preempted, Slurm requeues": (
        f"{PREEMPTED}; {outcome(verdict='stopped', cause='preempted')}", ENDING, ("stopped", "preempted"), 75, 1
    ),
    "preempted before it could save": (f"{PREEMPTED}; exit 137", ENDING, ("stopped", "preempted"), 75, 1),
    "scancel": (outcome(verdict="stopped", cause="preempted"), ENDING, ("stopped", "cancelled"), 4, 0),
    "scancel before it could save": ("exit 143", ENDING, ("stopped", "cancelled"), 4, 0),
    "cancelled by hpctrain": (outcome(verdict="stopped", cause="cancelled"), ENDING, ("stopped", "cancelled"), 4, 0),
    "the limit itself, saved": (
        f"{LATE}; {outcome(verdict='stopped', cause='preempted')}", ENDING, ("stopped", "time_limit"), 75, 1
    ),
    "the limit itself, not saved": (f"{LATE}; exit 143", ENDING, ("failed", "time_limit"), 4, 0),
    "a node lost": (f"{LOST}; exit 137", ENDING, ("failed", "node_failure"), 75, 1),
    "a node lost, others see an error": (
        f"{LOST}; {outcome(verdict='failed', cause='error')}; exit 4", ENDING, ("failed", "node_failure"), 75, 1
    ),
    "user error": (outcome(verdict="failed", cause="error") + "; exit 4", RUNNING, ("failed", "error"), 4, 0),
    "user error without a word, others killed for it": (
        "echo 'srun: error: n2: task 3: Exited with exit code 7'; echo 'srun: error: n1: tasks 0-1: Killed'; exit 143",
        RUNNING, ("failed", "error"), 4, 0,
    ),
    "no outcome, exit 0": ("true", RUNNING, ("failed", "error"), 4, 0),
    "rank killed": ("exit 137", RUNNING, ("failed", "rank_killed"), 75, 1),
    "rank killed, others see an error": (
        f"echo 'srun: error: n1: task 1: Killed'; {outcome(verdict='failed', cause='error')}; exit 137",
        RUNNING, ("failed", "rank_killed"), 75, 1,
    ),
    "rank killed under a wrapper": (
        "echo 'srun: error: n1: task 1: Exited with exit code 137'; exit 137", RUNNING, ("failed", "rank_killed"), 75, 1
    ),
    "the limit itself, after a save": (
        f"{GAIN}; {LATE}; exit 143", ENDING, ("failed", "time_limit"), 75, 1
    ),
    "requeued by hand": (f"{REQUEUED}; exit 143", ENDING, ("stopped", "preempted"), 75, 1),
    "out of memory": (
        "echo 'srun: error: n2: task 3: Out Of Memory'; exit 137", RUNNING, ("failed", "out_of_memory"), 4, 0
    ),
    "out of memory, others see a lost peer": (
        f"echo 'slurmstepd-n1: error: Detected 1 oom_kill event in StepId=7.0.'; {ECHO}; exit 137", RUNNING,
        ("failed", "out_of_memory"), 4, 0,
    ),
    "rank killed before the world was proven": (
        f"echo 'srun: error: n1: task 0: Killed'; {outcome(verdict='failed', cause='rendezvous_failed')}; exit 137",
        RUNNING, ("failed", "rank_killed"), 75, 1,
    ),
    "hang": (
        f"echo 'srun: error: n1: task 0: Killed'; {outcome(verdict='failed', cause='hang')}; exit 137",
        RUNNING, ("failed", "hang"), 75, 1,
    ),
    "disk full": (outcome(verdict="failed", cause="disk_full") + "; exit 4", RUNNING, ("failed", "disk_full"), 4, 0),
    "data error": (outcome(verdict="failed", cause="data_error") + "; exit 4", RUNNING, ("failed", "data_error"), 4, 0),
    "nonsense in outcome.json": (
        'printf nonsense >"$HPCTRAIN_RUN/attempts/$HPCTRAIN_ATTEMPT/outcome.json"', RUNNING, (None, None), 4, 0
    ),
}  # fmt: skip


@pytest.mark.parametrize(("srun", "job", "end", "code", "requeues"), TRAINING_ENDS.values(), ids=TRAINING_ENDS.keys())
def test_each_end_of_training_has_its_verdict(attempt, srun, job, end, code, requeues):
    done = attempt(srun, job=job)
    assert (verdict(attempt.run), done.returncode) == (end, code), done.stderr
    assert attempt.requeues() == requeues


@pytest.mark.parametrize(
    ("srun", "end", "code"),
    [
        ("true", ("completed", None), 0),
        ("exit 3", ("failed", "error"), 4),
        ("exit 143", ("stopped", "preempted"), 75),
        ("exit 137", ("failed", "rank_killed"), 75),
    ],
)
def test_a_command_is_judged_by_its_exit_code(attempt, srun, end, code):
    done = attempt(srun, command=True)
    assert (verdict(attempt.run), done.returncode) == (end, code), done.stderr


CAUSES = Restart.__struct_fields__


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_own_budget(attempt, cause):
    ends = f"{GAIN}; {outcome(verdict='stopped', cause=cause)}"
    others = [f"restart.{name}=9" for name in CAUSES if name != cause]
    codes = [attempt(ends, f"restart.{cause}=2", *others).returncode for _ in range(4)]
    assert codes == [75, 75, 4, 4]
    assert attempt.run.attempt_numbers() == [1, 2, 3]  # the fourth does not even start
    done = attempt(ends, f"restart.{cause}=2", *others)
    assert f"restart.{cause} allows 2" in done.stderr
    assert f"hpctrain resume {attempt.run.path} goes on from the last checkpoint" in done.stderr


def test_another_job_of_the_same_run_has_its_own_ledger(attempt):
    ends = outcome(verdict="stopped", cause="time_limit")
    assert attempt(ends, "restart.time_limit=0").returncode == 4
    assert attempt(outcome(verdict="completed"), "restart.time_limit=0", env={"SLURM_JOB_ID": "8"}).returncode == 0


def test_an_attempt_that_left_no_word_counts_as_a_lost_node(attempt):
    attempt(SCRIPT + "kill -9 $parent $PPID; sleep 0.1")
    assert not attempt.run.outcome(1).exists()
    done = attempt(outcome(verdict="completed"), "restart.node_failure=1")
    assert (done.returncode, verdict(attempt.run, 1)) == (0, ("failed", "node_failure"))


def test_an_attempt_that_was_killed_in_its_save_counts_as_preempted(attempt):
    attempt(f"{SCRIPT}{PREEMPTED}; kill -9 $parent $PPID; sleep 0.1")
    attempt(outcome(verdict="completed"), "restart.node_failure=0")
    assert verdict(attempt.run, 1)[1] == "preempted"


def test_an_error_of_the_ranks_that_a_lost_node_left_behind_counts_as_a_lost_node(attempt):
    seen = outcome(verdict="failed", cause="error", message="Connection reset")
    attempt(f"{SCRIPT}{seen}; kill -9 $parent $PPID; sleep 0.1")
    attempt(outcome(verdict="completed"))
    assert verdict(attempt.run, 1) == ("failed", "node_failure")
    assert read_json(attempt.run.outcome(1))["message"] == "Connection reset"


def test_a_refused_requeue_is_said(attempt):
    done = attempt(outcome(verdict="stopped", cause="time_limit"), requeue="exit 1")
    assert done.returncode == 4
    assert "refused to requeue" in done.stderr


def test_signals_to_the_script_alone_reach_the_ranks_and_it_waits_for_them(attempt):
    srun = f"{SCRIPT} kill -USR2 $parent; sleep 0.3; kill -TERM $parent; sleep 0.3; {outcome(verdict='completed')}"
    done = attempt(srun)
    assert done.returncode == 0, done.stderr
    assert attempt.calls["scancel"].read_text().splitlines() == ["--quiet --signal=USR2 7", "--quiet --signal=TERM 7"]


def test_a_signal_that_comes_just_when_the_ranks_are_started_is_told_and_they_are_waited_for(attempt, tmp_path):
    source = (Path(hpctrain.__file__).parents[1] / "jobs/ddp.sbatch").read_text()
    slow = tmp_path / "slow.sbatch"
    slow.write_text(source.replace("\nstep=$!\n", "\nsleep 0.3; step=$!\n"))
    assert slow.read_text() != source
    srun = f"{SCRIPT} kill -USR2 $parent; sleep 1; {outcome(verdict='completed')}"
    done = attempt(srun, f"slurm.template={slow}")
    assert done.returncode == 0, done.stderr
    assert attempt.calls["scancel"].read_text().splitlines() == ["--quiet --signal=USR2 7"]


def test_the_exit_code_of_srun_survives_signals(attempt):
    # bash's `wait` gave another code in five of six tries here
    for job_id, code in enumerate((3, 0, 137) * 4):
        signals = f"{SCRIPT} for i in 1 2 3 4 5; do kill -USR2 $parent; done; exit {code}"
        done = attempt(signals, "restart.rank_killed=0", env={"SLURM_JOB_ID": f"{job_id + 1}"})
        assert f"exit code of srun {code};" in done.stderr


def test_the_ranks_environment(attempt, tmp_path):
    attempt.run.code.mkdir()
    facts = tmp_path / "facts"
    names = ("PYTHONPATH", "SRUN_CPUS_PER_TASK", "RANK", "PYTHONUNBUFFERED", "HPCTRAIN_ATTEMPT", "HPCTRAIN_HOSTS")
    script = "; ".join(f'echo "{name}=${{{name}-unset}}" >>{facts}' for name in names)
    path = f"/mine:{Path(hpctrain.__file__).parents[1]}"
    attempt(script, env={"RANK": "3", "SLURM_CPUS_PER_TASK": "4", "PYTHONPATH": path})
    assert facts.read_text().splitlines() == [
        f"PYTHONPATH={attempt.run.code}:{path}", "SRUN_CPUS_PER_TASK=4", "RANK=unset", "PYTHONUNBUFFERED=1",
        "HPCTRAIN_ATTEMPT=1", "HPCTRAIN_HOSTS=n1 n2",
    ]  # fmt: skip
    assert attempt.calls["srun"].read_text().split() == (
        f"--kill-on-bad-exit=1 --distribution=block --label python -m hpctrain.train {attempt.run.path}".split()
    )


@pytest.mark.parametrize(("load", "code"), [("true", 0), ("false", 4)])
def test_modules_are_purged_and_loaded_or_the_job_says_why_not(attempt, load, code):
    module = f'() {{  echo "module $*"; [[ $1 == purge ]] || {load}; }}'
    done = attempt(outcome(verdict="completed"), "env.modules=[cuda/12.4]", env={"BASH_FUNC_module%%": module})
    assert done.returncode == code
    assert done.stdout.splitlines() == ["module purge", "module load cuda/12.4"]
    if code:
        assert "'module load cuda/12.4' failed" in read_json(attempt.run.outcome(1))["message"]


def test_modules_without_a_module_system_are_an_error(attempt):
    done = attempt("true", "env.modules=[cuda/12.4]")
    assert done.returncode == 4
    assert "there is no 'module' command on n1" in done.stderr


def test_a_venv_with_a_hostile_path_is_activated_and_setup_runs_as_it_stands(attempt, tmp_path):
    venv = tmp_path / "it's $(touch pwned) here"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text('MARK="$UNSET"active\n')
    setup = 'echo "$MARK and $ALSO_UNSET $(echo run)"'
    done = attempt(
        outcome(verdict="completed"), f"env.venv={json.dumps(str(venv))}", f"env.setup={json.dumps([setup])}"
    )
    assert (done.returncode, done.stdout) == (0, "active and  run\n"), done.stderr
    assert not list(Path().glob("pwned"))


@pytest.mark.parametrize("line", ["exit 0", "exit 7", "exec true"])
def test_a_line_of_setup_cannot_end_the_job_as_completed(attempt, line):
    done = attempt(outcome(verdict="completed"), f"env.setup=['{line}']")
    if line.startswith("exec"):  # that replaces the script; nothing is left to judge
        assert not attempt.run.outcome(1).exists()
    else:
        assert (done.returncode, verdict(attempt.run)) == (4, ("failed", "error"))


def test_two_scripts_at_once_get_two_attempts(attempt):
    attempt.run.attempt(1).mkdir()
    attempt.run.attempt(10).mkdir()
    attempt(outcome(verdict="completed"))
    assert attempt.run.attempt_numbers() == [1, 10, 11]


def test_outside_of_slurm_it_says_how_to_start_it(attempt):
    done = attempt("true", env={"SLURM_JOB_ID": ""})
    assert (done.returncode, "start it with sbatch" in done.stderr) == (4, True)


def blamed(host: str) -> str:
    """Return what srun leaves of an attempt that gains a step and whose rank is killed on a host."""
    return f"{GAIN}; echo 'srun: error: {host}: task 1: Killed'; exit 137"


def test_a_node_that_is_blamed_twice_is_left_out_of_the_next_attempt(attempt):
    for host in ("n2", "n1"):
        attempt(blamed(host), "slurm.exclude=n9")
        assert "ExcNodeList" not in attempt.calls["scontrol"].read_text()
    done = attempt(blamed("n2"), "slurm.exclude=n9")
    assert done.returncode == 75
    assert "update job=7 ExcNodeList=n9,n2" in attempt.calls["scontrol"].read_text().splitlines()
    assert f"--test-only --exclude=n9,n2 {attempt.run.script}" in attempt.calls["sbatch"].read_text()
    assert read_json(attempt.run.verdict(3))["exclude"] == ["n2"]


def test_a_node_without_which_the_job_fits_nowhere_stays(attempt):
    for _ in range(2):
        done = attempt(blamed("n2"), fits="echo 'Requested node configuration is not available' >&2; exit 1")
    assert done.returncode == 75
    assert "ExcNodeList" not in attempt.calls["scontrol"].read_text()
    assert "n2 was blamed twice, but the job does not fit without it: Requested node configuration" in done.stderr


def test_a_second_job_on_the_same_run_is_refused_and_touches_nothing(attempt):
    attempt(f"{SCRIPT}kill -9 $parent $PPID; sleep 0.1; touch $HPCTRAIN_RUN/ended")  # Slurm will requeue job 7
    until((attempt.run.path / "ended").exists)
    before = {path: path.stat().st_mtime_ns for path in attempt.run.path.rglob("*")}
    done = attempt(outcome(verdict="completed"), env={"SLURM_JOB_ID": "8"})
    assert done.returncode == 3
    assert "belongs to job 7 since" in done.stderr
    assert f"hpctrain cancel {attempt.run.path} ends it" in done.stderr
    ours = {attempt.run.config, attempt.run.plan, attempt.run.script, attempt.run.path}  # the test writes them anew
    changed = {path for path in attempt.run.path.rglob("*") if before.get(path) != path.stat().st_mtime_ns}
    assert changed - ours == set()


def test_a_second_job_takes_over_when_slurm_says_the_first_has_ended(attempt):
    attempt(f"{SCRIPT}kill -9 $parent $PPID; sleep 0.1")
    done = attempt(outcome(verdict="completed"), job="NODE_FAIL", env={"SLURM_JOB_ID": "8"})
    assert (done.returncode, verdict(attempt.run, 1)) == (0, ("failed", "node_failure")), done.stderr


def test_a_job_that_is_requeued_after_it_has_completed_does_nothing(attempt):
    attempt(outcome(verdict="completed"))
    done = attempt("exit 9")
    assert (done.returncode, attempt.run.attempt_numbers()) == (0, [1])
    assert "the run is complete" in done.stderr


def test_an_interpreter_that_cannot_run_the_ledger_is_said(attempt):
    done = attempt("true", env={"PATH": f"{attempt.broken_python()}:{os.environ['PATH']}"})
    assert done.returncode == 4
    assert "python cannot run hpctrain (exit code 1): is it installed there?" in done.stderr
    assert not attempt.run.attempt_numbers()


@pytest.mark.parametrize("cause", ["error", "data_error", "disk_full", "cancelled"])
def test_what_has_no_budget_is_never_requeued(attempt, cause):
    done = attempt(f"{GAIN}; {outcome(verdict='failed', cause=cause)}; exit 4")
    assert (done.returncode, attempt.requeues()) == (4, 0)


def test_two_attempts_in_a_row_without_a_step_end_the_run(attempt):
    assert attempt(f"{GAIN}; {outcome(verdict='stopped', cause='preempted')}").returncode == 75
    stuck = outcome(verdict="stopped", cause="preempted")
    assert attempt(stuck).returncode == 75
    done = attempt(stuck)
    assert (done.returncode, attempt.requeues()) == (4, 2)
    assert "two attempts in a row gained no step (ended twice by preempted)" in done.stderr
    assert read_json(attempt.run.verdict(3))["cause"] == "no_progress"
    assert "Comment=hpctrain: two attempts in a row" in attempt.calls["scontrol"].read_text()

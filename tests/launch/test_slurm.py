import pytest

from hpctrain.errors import ClusterError
from hpctrain.launch import slurm
from hpctrain.launch.states import FINAL, REASONS, STATES, our_state, sentence


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "job.sbatch"
    path.write_text("#!/bin/bash\n#SBATCH --partition=gup\ntrue\n")
    return path


@pytest.mark.parametrize("said", ["1234", "1234;cluster", "*** welcome to site 7 ***\n1234;c\n", "1234\n\n"])
def test_the_job_id_is_read(fake, script, said):
    calls = fake("sbatch", f"printf '%s' '{said}'")
    assert slurm.submit(script) == "1234"
    assert calls.read_text() == f"--parsable {script}\n"


def test_an_answer_without_a_job_id_is_an_error(fake, script):
    fake("sbatch", "echo Submitted")
    with pytest.raises(ClusterError, match="without a job id"):
        slurm.submit(script)


REFUSALS = {
    "Batch job submission failed: Invalid account or account/partition combination specified": "slurm.account",
    "Batch job submission failed: Invalid qos specification": "slurm.qos",
    "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)": "slurm.time",
    "Batch job submission failed: User's group not permitted to use this partition": "slurm.partition",
    "Batch job submission failed: Required partition not available (inactive or drain)": "slurm.partition",
    "Batch job submission failed: Invalid generic resource (gres) specification": "slurm.gpus_per_node",
    "Batch job submission failed: Invalid feature specification": "slurm.constraint",
    "Memory specification can not be satisfied": "slurm.mem",
    "Batch job submission failed: Requested reservation is invalid": "slurm.reservation",
    "Batch job submission failed: Invalid node name specified": "slurm.nodelist",
    "Batch job submission failed: Job dependency problem": "slurm.dependency",
    "Batch job submission failed: Requested node configuration is not available": "slurm.nodes",
    "Batch job submission failed: Node count specification invalid": "slurm.nodes",
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)":
        "a limit of your account",
    "Batch job submission failed: Access/permission denied": "may not do that",
    "Batch job submission failed: Unable to contact slurm controller (connect failure)": "cannot be reached",
    "Batch job submission failed: Socket timed out on send/recv operation": "cannot be reached",
    "Unable to process configuration file": "cannot be reached",
    'Munge encode failed: Failed to access "/run/munge/munge.socket.2"': "credentials",
    "Invalid --mail-type specification": "slurm.mail_type",
    "Batch script contains DOS line breaks (\\r\\n)": "the script",
    "Something that nobody has seen before": "Slurm refused",
    "": "no reason given",
}  # fmt: skip


@pytest.mark.parametrize(("said", "meaning"), REFUSALS.items())
def test_a_refusal_says_what_to_change_and_keeps_slurms_words(fake, script, said, meaning):
    fake("sbatch", f"cat >&2 <<'END'\nsbatch: error: {said}\nEND\nexit 1")
    with pytest.raises(ClusterError) as caught:
        slurm.submit(script)
    assert meaning in str(caught.value)
    assert said.rpartition("failed: ")[2] in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("sinfo", "expected"),
    [
        ("printf 'gpu*\\x1f4\\x1f1-00:00:00\\x1fgpu:a100:4\\x1fup\\ncpu\\x1f9\\x1finfinite\\x1f(null)\\x1fup\\n'",
         "there is no partition 'gup'; did you mean 'gpu'?{said}  slurm.partition=NAME, one of: gpu, cpu"),
        ("exit 1",
         "there is no partition 'gup'{said}  sinfo lists partitions"),
    ],
)  # fmt: skip
def test_an_unknown_partition_is_told_with_those_that_there_are(fake, script, sinfo, expected):
    fake("sbatch", "echo 'sbatch: error: invalid partition specified: gup' >&2; exit 1")
    fake("sinfo", sinfo)
    with pytest.raises(ClusterError) as caught:
        slurm.submit(script)
    assert str(caught.value) == expected.format(said="\n  sbatch: invalid partition specified: gup\n")


def test_kinds_of_nodes_of_a_partition_are_added_up(fake):
    fake("sinfo", "printf 'gpu*\\x1f4\\x1f2:00\\x1fgpu:a100:4\\x1fup\\ngpu*\\x1f2\\x1f2:00\\x1fgpu:h100:8\\x1fup\\n'")
    (partition,) = slurm.partitions()
    assert (partition.name, partition.default, partition.nodes) == ("gpu", True, 6)
    assert partition.gres == ("gpu:a100:4", "gpu:h100:8")


def test_without_slurm_it_says_how_to_go_on(monkeypatch, script, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(ClusterError, match="--scheduler local"):
        slurm.submit(script)


def test_a_client_that_hangs_is_given_up(fake, monkeypatch, script):
    monkeypatch.setattr(slurm, "SUBMIT_TIMEOUT_S", 0.2)
    fake("sbatch", "exec sleep 60")
    with pytest.raises(ClusterError, match=r"did not answer in 0\.2 s\n.*squeue --me"):
        slurm.submit(script)


def test_variables_that_change_what_clients_do_are_dropped():
    env = {"SBATCH_PARTITION": "x", "SLURM_JOB_ID": "1", "SQUEUE_FORMAT": "x", "SLURM_CONF": "/c", "HOME": "/h"}
    assert slurm.environment(env) == {"SLURM_CONF": "/c", "HOME": "/h", "LC_ALL": "C.UTF-8"}


def test_jobs_are_asked_for_by_one_call(fake):
    first = "7\x1fRUNNING\x1fNone\x1f2\x1fn[1-2]\x1f1\x1f0\x1f\n"
    calls = fake("squeue", f"printf '{first}8\x1fPENDING\x1fPriority\x1f4\x1f\x1f0\x1f0\n'")
    found = slurm.jobs(["7", "8", "7", "local-3", "; rm -rf /"])
    assert calls.read_text().count("\n") == 1
    assert "--jobs=7,8 " in calls.read_text()
    assert (found["7"].state, found["7"].reason, found["7"].node_list, found["7"].restarts) == (
        "RUNNING",
        "",
        "n[1-2]",
        1,
    )
    assert (found["8"].state, found["8"].reason, found["8"].node_count) == ("PENDING", "Priority", 4)
    assert slurm.jobs([]) == {}


def test_what_the_controller_forgot_is_asked_of_sacct(fake):
    fake("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    fake("sacct", "printf '7|CANCELLED by 1000|2|n[1-2]|0:15\\n9|COMPLETED|1|n1|0:0\\n'")
    assert slurm.jobs(["7"]) == {
        "7": slurm.Job(job_id="7", state="CANCELLED", node_count=2, node_list="n[1-2]", exit_code=0)
    }


@pytest.mark.parametrize("sacct", ["echo 'Slurm accounting storage is disabled' >&2; exit 1", "exit 0"])
def test_no_accounting_is_no_error(fake, sacct):
    fake("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    fake("sacct", sacct)
    assert slurm.jobs(["7"]) == {}


def test_an_unreachable_controller_is_an_error(fake):
    fake("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(ClusterError, match="cannot be reached"):
        slurm.jobs(["7"])


@pytest.mark.parametrize(
    ("said", "code"), [("", 0), ("Invalid job id specified", 1), ("Job/step already completing", 1)]
)
def test_to_cancel_what_has_ended_is_no_error(fake, said, code):
    fake("scancel", f"echo 'scancel: error: Kill job error on job id 7: {said}' >&2; exit {code}")
    slurm.cancel("7")


def test_a_refused_cancel_is_an_error(fake):
    fake("scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1")
    with pytest.raises(ClusterError, match="may not do that"):
        slurm.cancel("7")


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("PENDING", "Priority", "jobs of higher priority are before it (Priority)"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n3",
         "a node it needs is down, drained or reserved (ReqNodeNotAvail, UnavailableNodes:n3)"),
        ("PENDING", "QOSMaxGRESPerUser", "your limit of GPUs is used up by running jobs (QOSMaxGRESPerUser)"),
        ("PENDING", "AssocGrpNodeLimit",
         "the account's limit of nodes is used up; it waits for other jobs to end (AssocGrpNodeLimit)"),
        ("PENDING", "QOSMaxWallDuration",
         "the limit of time of the quality of service is used up; it waits for other jobs to end (QOSMaxWallDuration)"),
        ("PENDING", "", "waits in the queue"),
        ("TIMEOUT", "None", "the time limit was reached; slurm.time sets it, slurm.signal_s the warning before it"),
        ("PENDING", "NewInSlurm31", "Slurm says NewInSlurm31"),
        ("NEW_STATE", "", "Slurm says NEW_STATE"),
    ],
)  # fmt: skip
def test_states_and_reasons_are_plain_sentences(state, reason, expected):
    assert sentence(state, reason) == expected


def test_every_state_has_a_known_state_and_no_sentence_ends_in_a_stop():
    assert {ours for ours, _ in STATES.values()} >= FINAL
    assert our_state("NEW_STATE") == "RUNNING"
    for text in [*REASONS.values(), *(text for _, text in STATES.values())]:
        assert not text.endswith(".")

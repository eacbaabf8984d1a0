from pathlib import Path

import pytest

from hpctrain.dist.mpirun import Failure, binary, command, environment, first_failure, flavour_of

OPEN_MPI_4 = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n"
OPEN_MPI_5 = "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
SPECTRUM = "mpirun (IBM Spectrum MPI) 10.3.1.02rtm0\n\nReport bugs to http://www.ibm.com/\n"
MPICH = """HYDRA build details:
    Version:                                 4.0.2
    Release Date:                            Thu Apr  7 12:34:45 CDT 2022
    Process Manager:                         pmi
    Launchers available:                     ssh rsh fork slurm ll lsf sge manual persist
    Resource management kernels available:   user slurm ll lsf sge pbs cobalt
"""
INTEL = """Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)
Copyright 2003-2026, Intel Corporation.
"""


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        (OPEN_MPI_4, "openmpi4"),
        (OPEN_MPI_5, "openmpi5"),
        ("mpirun (Open MPI) 10.0.1\n", "openmpi5"),
        (SPECTRUM, "openmpi4"),
        (MPICH, "mpich"),
        (INTEL, "intel"),
        ("mpirun: command not found", None),
        ("", None),
    ],
)
def test_the_kind_is_known_by_what_it_says_of_itself(text, flavour):
    assert flavour_of(text) == flavour


def test_each_kind_gets_the_same_ranks_in_its_own_words():
    def line(flavour, **options):
        return " ".join(
            command(flavour, "/opt/mpirun", ["python", "x"], hosts=["n1", "n2"], ranks_per_node=2, **options)
        )

    open_mpi = "/opt/mpirun -np 4 --host n1:2,n2:2 --map-by ppr:2:node --bind-to none"
    hydra = "/opt/mpirun -n 4 -ppn 2 -hosts n1,n2 -genvnone"
    assert line("openmpi4") == line("openmpi5") == f"{open_mpi} python x"
    assert line("mpich") == line("intel") == f"{hydra} python x"
    assert line("openmpi4", as_root=True).startswith("/opt/mpirun --allow-run-as-root -np 4")
    assert line("mpich", as_root=True) == line("mpich")
    both = "--mca btl_tcp_if_include ib0 --mca oob_tcp_if_include ib0"
    assert line("openmpi4", interface="ib0") == f"{open_mpi} {both} python x"
    both = "--mca btl_tcp_if_include ib0 --prtemca prte_if_include ib0"
    assert line("openmpi5", interface="ib0") == f"{open_mpi} {both} python x"
    assert line("intel", interface="ib0") == f"{hydra} -iface ib0 python x"


def test_what_the_step_around_it_says_of_mpi_is_not_passed_on():
    env = {
        **dict.fromkeys(("PMI_RANK", "PMI_FD", "PMI2_x", "PMIX_RANK", "PMIX_SERVER_URI41"), "a step's"),
        **dict.fromkeys(("RANK", "HOROVOD_RANK", "OMPI_COMM_WORLD_SIZE", "HPCTRAIN_SUPERVISOR"), "an outer one's"),
        **dict.fromkeys(("TOKEN", "PMIX_MCA_gds", "OMPI_MCA_btl", "SLURM_JOB_ID", "HPCTRAIN_RUN", "PATH"), "kept"),
    }
    assert environment(env) == {name: text for name, text in env.items() if text == "kept"}
    with_agent = environment({**env, "OMPI_MCA_plm": "slurm"}, Path("/run/agent"))
    assert with_agent["OMPI_MCA_plm"] == "rsh"
    for name in ("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent", "HYDRA_LAUNCHER_EXEC", "I_MPI_HYDRA_BOOTSTRAP_EXEC"):
        assert with_agent[name] == "/run/agent"
    assert "a step's" not in with_agent.values()


def test_two_sandboxes_on_one_machine_do_not_share_files():
    conf = "/tmp/hpctrain-sandbox-x/etc/slurm.conf"
    assert environment({"SLURM_CONF": conf})["OMPI_MCA_orte_tmpdir_base"] == "/dev/shm"
    assert environment({"SLURM_CONF": "/etc/slurm/slurm.conf"}).keys() == {"SLURM_CONF"}


def test_intel_mpis_mpirun_is_passed_by(tmp_path):
    mpirun = tmp_path / "mpirun"
    assert binary(str(mpirun), "intel") == str(mpirun)
    (tmp_path / "mpiexec.hydra").touch()
    assert binary(str(mpirun), "intel") == str(tmp_path / "mpiexec.hydra")
    assert binary(str(mpirun), "mpich") == str(mpirun)


ORTE_KILLED = "mpirun noticed that process rank 3 with PID 19 on node n2 exited on signal 9 (Killed).\n"
PRTE_KILLED = "prterun noticed that process rank 3 with PID 35 on node n2 exited on\nsignal 9 (Killed).\n"
ORTE_EXIT = """mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[6439,1],3]
  Exit code:    7
"""
PRTE_EXIT = ORTE_EXIT.replace("[[6439,1],3]", "[prterun-n1-56@1,3]")
ABORT = """MPI_ABORT was invoked on rank 3 in communicator MPI_COMM_WORLD
with errorcode 7.
"""
MPICH_KILLED = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 16 RUNNING AT n2
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
"""
INTEL_KILLED = """=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   RANK 3 PID 16 RUNNING AT n2
=   KILLED BY SIGNAL: 9 (Killed)
"""
HOROVODRUN = "Process 3 exit with status code 7.\nTerminating remaining workers after failure of Process 3.\n"


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        (ORTE_KILLED, Failure(3, "n2", 137)),
        (PRTE_KILLED, Failure(3, "n2", 137)),
        (ORTE_EXIT, Failure(3, None, 7)),
        (PRTE_EXIT, Failure(3, None, 7)),
        (ABORT, Failure(3, None, 7)),
        ("Abort(7) on node 3 (rank 3 in comm 0): application called MPI_Abort\n", Failure(3, None, 7)),
        (MPICH_KILLED, Failure(None, "n2", 137)),
        (MPICH_KILLED.split("YOUR APPLICATION TERM")[0].replace("CODE: 9", "CODE: 7"), Failure(None, "n2", 7)),
        (INTEL_KILLED, Failure(3, "n2", 137)),
        (HOROVODRUN, Failure(3, None, 7)),
        (HOROVODRUN.replace("7", "137") + "Process 1 exit with status code 143.\n", Failure(3, None, 137)),
        (f"{PRTE_EXIT}{ORTE_KILLED}", Failure(3, None, 7)),
        ("all is well\n", None),
    ],
)
def test_the_first_rank_that_failed_is_found_in_what_the_launcher_says(words, failure):
    assert first_failure(f"a line before\n{words}a line after\n") == failure

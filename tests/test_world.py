import pytest

from hpctrain.errors import WorldError
from hpctrain.world import from_env

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURMD_NODENAME": "n2",
}
HOROVODRUN = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("launcher", "env"),
    [
        *(("torchrun", TORCHRUN), ("srun", SLURM), ("openmpi", OPENMPI), ("hydra", HYDRA)),
        ("horovodrun", {**HOROVODRUN, "HOROVOD_CROSS_RANK": "1", "HOROVOD_CROSS_SIZE": "2"}),
    ],
)
def test_each_launcher_gives_the_same_place(launcher, env):
    world = from_env(env)
    assert (world.launcher, world.rank, world.size, world.local_rank, world.local_size, world.node) == (
        launcher,
        3,
        4,
        1,
        2,
        1,
    )


def test_an_inner_launcher_wins_over_the_slurm_step_around_it():
    # under mpirun SLURM_PROCID is the daemon's
    assert from_env({**SLURM, "SLURM_PROCID": "0", **OPENMPI}).rank == 3
    assert from_env({**SLURM, "SLURM_PROCID": "1", **TORCHRUN}).launcher == "torchrun"


def test_ranks_of_horovodrun_are_numbered_by_it():
    relay = {**SLURM, "SLURM_PROCID": "1"}  # a task per node
    assert from_env({**relay, **HOROVODRUN}).launcher == "horovodrun"
    assert from_env({**OPENMPI, "OMPI_COMM_WORLD_RANK": "0", **HOROVODRUN}).rank == 3
    # our supervisor, called by hand in a shell that horovodrun has started
    assert from_env({**HOROVODRUN, **TORCHRUN, "RANK": "2"}).rank == 2
    # a setting, or what hpctrain itself tells Horovod of a step, must not pass for a launcher
    assert from_env({**SLURM, "HOROVOD_FUSION_THRESHOLD": "1"}).launcher == "srun"


@pytest.mark.parametrize("mpi", [{"PMIX_RANK": "3", "PMIX_NAMESPACE": "slurm.pmix.7.0"}, {"PMI_RANK": "3"}])
def test_a_step_with_an_mpi_is_still_a_step(mpi):
    assert from_env({**SLURM, **mpi}).launcher == "srun"


def test_the_pmi2_variables_of_a_slurm_step_do_not_pass_for_another_launcher():
    pmi2 = {"PMI_FD": "11", "PMI_JOBID": "7.0", "PMI_RANK": "3", "PMI_SIZE": "4"}
    assert from_env({**SLURM, **pmi2}).launcher == "srun"
    with pytest.raises(WorldError, match="half set"):
        from_env(pmi2)
    assert from_env({**SLURM, "SLURM_PROCID": "1", **HYDRA}).rank == 3


def test_an_allocation_without_a_step_is_a_single_process():
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    world = from_env(batch)
    assert (world.size, world.rank, world.launcher) == (1, 0, "none")


def test_nothing_set_is_a_single_process():
    world = from_env({})
    assert (world.size, world.local_size, world.launcher) == (1, 1, "none")
    assert world.host


def test_uneven_nodes_are_read():
    env = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x1),1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}
    assert from_env({**env, "SLURM_LOCALID": "0"}).local_size == 1


def test_a_half_set_environment_lists_what_is_set():
    with pytest.raises(WorldError) as caught:
        from_env({"RANK": "0", "WORLD_SIZE": "2"})
    assert str(caught.value) == (
        "the environment of torchrun is half set: LOCAL_RANK, LOCAL_WORLD_SIZE missing, RANK=0, WORLD_SIZE=2 set\n"
        "  unset RANK WORLD_SIZE, or start the program with torchrun again"
    )


@pytest.mark.parametrize("dropped", sorted(SLURM.keys() - {"SLURM_JOB_ID", "SLURMD_NODENAME"}))
def test_a_half_set_step_is_refused_or_a_single_process_but_never_guessed(dropped):
    env = {name: value for name, value in SLURM.items() if name != dropped}
    if dropped in {"SLURM_STEP_ID", "SLURM_PROCID"}:
        assert from_env(env).size == 1
    else:
        with pytest.raises(WorldError, match="half set"):
            from_env(env)


@pytest.mark.parametrize(
    "change",
    [{"RANK": "4"}, {"RANK": "-1"}, {"LOCAL_RANK": "2"}, {"LOCAL_WORLD_SIZE": "5"}, {"WORLD_SIZE": "0"}],
)
def test_numbers_that_contradict_each_other_are_refused(change):
    with pytest.raises(WorldError, match="contradicts itself"):
        from_env({**TORCHRUN, **change})


def test_text_instead_of_numbers_is_refused():
    with pytest.raises(WorldError, match="no whole numbers: RANK=x"):
        from_env({**TORCHRUN, "RANK": "x"})

"""Ranks find each other over the right interface, whatever the network is called and whatever else there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hpctrain

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

# The same address on every node, on an interface that sorts before the real one: what Docker leaves on hosts.
DECOY = """
ip link add adecoy0 type bridge
ip addr add 172.17.0.1/16 dev adecoy0
ip link set adecoy0 up
"""

SCRIPT = """
import os, socket
from hpctrain.dist import interface
print(os.environ["RANK"], socket.gethostname(), os.environ["GLOO_SOCKET_IFNAME"], os.environ["MASTER_ADDR"])
print(*sorted(interface.addresses()))
print(socket.gethostbyname(socket.gethostname()))
"""

CONFIG = "name: net\nslurm: {nodes: 2, ranks_per_node: 2, time: 00:05:00}\ncommand: [python, show.py]\n"

# Debian maps a host's own name to 127.0.1.1: then the own name leads nowhere and the peers' view counts.
LOOPBACK_NAME = """
sed "s/^[^#]* $(hostname)$/127.0.1.1 $(hostname)/" /etc/hosts >/dev/shm/hosts
mount --bind /dev/shm/hosts /etc/hosts
"""


@pytest.mark.parametrize("network", ["10.99.3", "192.168.77"])
@pytest.mark.parametrize("prepare", [DECOY, DECOY + LOOPBACK_NAME], ids=["decoy", "decoy and own name on loopback"])
def test_ranks_talk_over_the_network_of_the_nodes(slurm_packages, tmp_path, network, prepare):
    run = run_on(tmp_path, SCRIPT, prepare, network)
    shown = [(run / f"attempts/1/logs/rank_{rank}.out").read_text().splitlines() for rank in range(4)]
    assert [line[0] for line in shown] == [f"{r} n{r // 2 + 1} eth0 {network}.1" for r in range(4)]
    assert all("adecoy0" in interfaces for _, interfaces, _ in shown)
    own = [name for _, _, name in shown]
    assert own == (["127.0.1.1"] * 4 if LOOPBACK_NAME in prepare else [f"{network}.{n}" for n in (1, 1, 2, 2)])


# an MPI program without a compiler: Open MPI's communicators are addresses of symbols
MPI = """
import ctypes, os
mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
world = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_comm_world")))
assert mpi.MPI_Init(None, None) == 0
assert mpi.MPI_Barrier(world) == 0
print(os.environ["RANK"], os.environ["OMPI_MCA_btl_tcp_if_include"])
assert mpi.MPI_Finalize() == 0
"""


@pytest.mark.parametrize("started", ["dist.launcher=mpirun", "dist.mpi=pmix"])
def test_open_mpi_talks_over_the_network_of_the_nodes(slurm_packages, open_mpi, tmp_path, started):
    run = run_on(tmp_path, MPI, DECOY, "10.99.3", started, timeout=90)
    shown = [(run / f"attempts/1/logs/rank_{rank}.out").read_text() for rank in range(4)]
    assert shown == [f"{rank} 10.99.3.0/24\n" for rank in range(4)]


def run_on(tmp_path, script, prepare, network, *overrides, timeout=150):
    """Run a script as every rank in a sandbox of that network, on prepared nodes; return the run directory."""
    (tmp_path / "show.py").write_text(script)
    (tmp_path / "net.yaml").write_text(CONFIG)
    (tmp_path / "prepare.sh").write_text("set -e\n" + prepare)
    python = sys.executable
    submit = " ".join(["submit", "net.yaml", *overrides, "--scheduler slurm --follow"])
    steps = f"srun -N2 --ntasks-per-node=1 bash {tmp_path}/prepare.sh && {python} -m hpctrain {submit}"
    done = subprocess.run(
        [python, "-m", "hpctrain", "sandbox", "run", "--nodes", "2", "--network", network, "--", "bash", "-c", steps],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = (tmp_path / "runs").iterdir()
    return run


def environment(tmp_path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "HPCTRAIN_"))}
    return {**kept, "PYTHONPATH": str(Path(hpctrain.__file__).parents[1]), "XDG_STATE_HOME": str(tmp_path / "state")}

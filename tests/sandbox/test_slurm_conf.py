from pathlib import Path

from hpctrain.sandbox import slurm_conf
from hpctrain.sandbox.root import Root
from hpctrain.sandbox.spec import Spec

ROOT = Root(Path("/r"))


def test_slurm_conf_of_two_nodes():
    text = slurm_conf.slurm_conf(Spec(nodes=2, gpus_per_node=4, network="10.1.2"), ROOT, "ada")
    assert text.startswith("""\
ClusterName=sandbox
SlurmctldHost=login(10.1.2.254)
SlurmUser=ada
SlurmdUser=ada
# cred_expire: a requeued job waits this long; Slurm takes less than 5 for 120
AuthInfo=socket=/r/munge/socket,cred_expire=5
StateSaveLocation=/r/state
SlurmdSpoolDir=/r/spool/%n
SlurmctldPidFile=/r/run/slurmctld.pid
SlurmdPidFile=/r/run/slurmd.%n.pid
SlurmctldLogFile=/r/log/slurmctld.log
SlurmdLogFile=/r/log/slurmd.%n.log
""")
    assert text.endswith("""
GresTypes=gpu
NodeName=n[1-2] NodeAddr=10.1.2.[1-2] CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 \
RealMemory=1000000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
""")


def test_slurm_conf_of_one_node_without_gpus():
    text = slurm_conf.slurm_conf(Spec(nodes=1, gpus_per_node=0, cpus_per_node=3), ROOT, "ada")
    assert "NodeName=n1 NodeAddr=10.231.7.1 CPUs=3 " in text
    assert "gpu" not in text
    assert "Accounting" not in text


def test_slurm_conf_with_accounting_asks_the_private_munge():
    text = slurm_conf.slurm_conf(Spec(nodes=1, gpus_per_node=1, accounting=True), ROOT, "ada")
    assert (
        """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=10.231.7.254
AccountingStoragePort=6819
AccountingStoragePass=/r/munge/socket
AccountingStorageTRES=gres/gpu
"""
        in text
    )


def test_slurm_conf_sets_no_key_twice():
    text = slurm_conf.slurm_conf(Spec(nodes=2, gpus_per_node=2, accounting=True), ROOT, "ada")
    keys = [line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("Partition")]
    assert len(keys) == len(set(keys))


def test_partitions_of_the_cluster_at_home():
    text = slurm_conf.slurm_conf(Spec(nodes=1, gpus_per_node=0, partitions=("gpu", "urgent")), ROOT, "ada")
    assert [line for line in text.splitlines() if line.startswith("Partition")] == [
        "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1",
        "PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE PriorityTier=1",
    ]


def test_gres_conf_names_a_device_per_gpu():
    devices = [Path("/r/dev/gpu0"), Path("/dev/null")]
    assert slurm_conf.gres_conf(Spec(nodes=3, gpus_per_node=2), devices) == (
        "NodeName=n[1-3] Name=gpu File=/r/dev/gpu0\nNodeName=n[1-3] Name=gpu File=/dev/null\n"
    )


def test_hosts_name_every_node_and_the_login_node():
    assert slurm_conf.hosts(Spec(nodes=2, gpus_per_node=0, network="192.168.5")) == (
        "127.0.0.1 localhost\n::1 localhost\n192.168.5.254 login\n192.168.5.1 n1\n192.168.5.2 n2\n"
    )


def test_nsswitch_never_asks_dns():
    machine = "passwd: files systemd\n hosts:  files dns\n# hosts: dns\n"
    assert slurm_conf.nsswitch_conf(machine) == "passwd: files systemd\n# hosts: dns\nhosts: files\n"
    assert slurm_conf.nsswitch_conf("") == "hosts: files\n"


def test_slurmdbd_conf():
    text = slurm_conf.slurmdbd_conf(
        Spec(nodes=1, gpus_per_node=0),
        ROOT,
        "ada",
        database_port=3306,
        password="secret",  # noqa: S106 (not one)
    )
    assert (
        text
        == """\
AuthType=auth/munge
AuthInfo=socket=/r/munge/socket
DbdHost=login
DbdAddr=10.231.7.254
DbdPort=6819
SlurmUser=ada
LogFile=/r/log/slurmdbd.log
PidFile=/r/run/slurmdbd.pid
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=slurm
StoragePass=secret
StorageLoc=slurm_acct_db
"""
    )

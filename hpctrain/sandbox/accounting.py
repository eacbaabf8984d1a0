"""MariaDB and slurmdbd, without which there is no sacct. Everything here runs on the login node."""

import os
import secrets
import subprocess
from collections.abc import Callable

from hpctrain.errors import ClusterError
from hpctrain.sandbox import linux, slurm_conf
from hpctrain.sandbox.root import Root
from hpctrain.sandbox.spec import Spec, tool

_DATABASE_PORT = 3306
_SECONDS = 30

Wait = Callable[[str, int, Callable[[], bool]], None]
"""wait(what, its pid, ready): returns when `ready`; raises ClusterError when it ends or takes too long."""


def start(root: Root, spec: Spec, user: str, wait: Wait) -> None:
    """Start the database, then slurmdbd, and make this cluster known to it.

    Raises:
        ClusterError: one of them did not start.
    """
    password = secrets.token_hex(16)
    _start_mariadb(root, user, password, wait)
    config = root.etc("slurmdbd.conf")
    config.touch(mode=0o600)  # slurmdbd refuses any other mode
    config.write_text(slurm_conf.slurmdbd_conf(spec, root, user, database_port=_DATABASE_PORT, password=password))
    slurmdbd = linux.start_daemon(["slurmdbd", "-D"], root.log("slurmdbd.out"))
    wait("slurmdbd", slurmdbd, lambda: _succeeds("sacctmgr", "--noheader", "list", "cluster"))
    _succeeds("sacctmgr", "--quiet", "--immediate", "add", "cluster", slurm_conf.CLUSTER)


def _start_mariadb(root: Root, user: str, password: str, wait: Wait) -> None:
    data, where = root.path / "db", root.path / "run" / "mariadb"
    data.chmod(0o700)
    install = [tool("mariadb-install-db"), "--no-defaults", f"--datadir={data}", f"--user={user}", "--skip-test-db"]
    with root.log("mariadb-install").open("wb") as log:
        done = subprocess.run(install, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        raise ClusterError(f"sandbox: {' '.join(install)} ended with {done.returncode}", f"see {log.name}")
    options = {
        "user": user,
        "datadir": data,
        "socket": where,
        "pid-file": root.path / "run" / "mariadb.pid",
        "bind-address": "127.0.0.1",
        "port": _DATABASE_PORT,
        "log-error": root.log("mariadbd"),
        # small and careless: the data dies with the sandbox; the time-out is what slurmdbd asks for
        "innodb-buffer-pool-size": "64M",
        "innodb-log-file-size": "16M",
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-lock-wait-timeout": 900,
    }
    argv = ["mariadbd", "--no-defaults", *(f"--{key}={value}" for key, value in options.items())]
    mariadbd = linux.start_daemon(argv, root.log("mariadbd.out"))
    grant = (
        "CREATE DATABASE IF NOT EXISTS slurm_acct_db; "
        f"GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}', "
        f"'slurm'@'localhost' IDENTIFIED BY '{password}'"
    )
    client = ("mariadb", "--no-defaults", f"--socket={where}", f"--user={'root' if os.geteuid() == 0 else user}")
    # over standard input: a password on the command line is for everybody to read
    wait("mariadbd", mariadbd, lambda: where.exists() and _succeeds(*client, text=grant))


def _succeeds(program: str, *arguments: str, text: str = "") -> bool:
    argv = [*linux.without_capabilities(), tool(program), *arguments]
    try:
        done = subprocess.run(argv, input=text.encode(), capture_output=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0

"""Holds the store of a `command:` run: `python -m hpctrain.train.store DESCRIPTOR PORT RANK_PID [NODESxRANKS]`.

A child of rank 0. With nodes and ranks of each as the last argument it is Horovod's rendezvous, else torch's store.

Importing all of torch would take longer than the whole start of a small script and compete with it for the cores. The
store's server is native code, so only torch's extension module is loaded (0.3 s instead of 2); should a torch release
not allow that, torch is imported as usual.
"""

import ctypes
import importlib.util
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any, NoReturn


def _store_class() -> Any:
    """Load torch's TCPStore without running torch's own `__init__`, unless it has been run already."""
    if "torch" in sys.modules:
        return importlib.import_module("torch.distributed").TCPStore
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("hpctrain: torch is not installed in this job's Python; pip install torch")
    home = Path(spec.origin).parent
    try:
        for name, path in (("torch", home), ("torch.distributed", home / "distributed")):
            package = types.ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package
        extension = importlib.import_module("torch._C")
        sys.modules["torch"]._C = extension  # type: ignore[attr-defined]
        extension._c10d_init()
        return sys.modules["torch._C._distributed_c10d"].TCPStore
    except Exception:  # noqa: BLE001 - whatever a release breaks here, the plain import below still works
        for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
            del sys.modules[name]
        return importlib.import_module("torch.distributed").TCPStore


def hold(descriptor: int, port: int, rank_pid: int, slots: str) -> NoReturn:
    """Serve until the rank that started this process has ended."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != rank_pid:
        os._exit(0)
    for quiet in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # these are for the rank, which still needs the store
        signal.signal(quiet, signal.SIG_IGN)
    if slots:
        from hpctrain.dist import rendezvous

        nodes, per_node = map(int, slots.split("x"))
        _server = rendezvous.serve(descriptor, nodes=nodes, ranks_per_node=per_node)
    else:
        _store = _store_class()("localhost", port, None, True, wait_for_workers=False, master_listen_fd=descriptor)
    while True:
        signal.pause()


if __name__ == "__main__":
    hold(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

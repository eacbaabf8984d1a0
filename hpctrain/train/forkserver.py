"""Ranks of this machine by fork: `python .../forkserver.py SUPERVISOR`, which imports torch once for all of them.

1. The supervisor starts this program as soon as it knows that there will be ranks, and makes the run directory
   meanwhile. 2. It sends one order on standard input: where the snapshot is, and the environment of each rank.
3. Every rank is forked from here and goes the way of `python -m hpctrain.train RUN`. 4. Their process ids go to
standard output and this process ends, which makes the ranks children of the supervisor (a subreaper).

It is run as a file and knows only the standard library and torch: hpctrain itself comes from the snapshot, which is not
there yet when this starts.
"""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the directory of this file, whose modules must not be taken for others of the same name

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import time
from typing import Any


def main() -> None:
    """Import torch, take the order, fork the ranks."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return
    gc.disable()  # importing makes little garbage
    with contextlib.suppress(ImportError):  # the ranks will say it better
        importlib.import_module("torch.distributed")
    if not (line := sys.stdin.buffer.readline()):  # the supervisor found something wrong and is gone
        return
    order: dict[str, Any] = json.loads(line)
    sys.path[:0] = [order["code"], order["code"]]  # as the working directory and PYTHONPATH give it to `python -m`
    rank_main = importlib.import_module("hpctrain.train.__main__").main
    importlib.import_module("hpctrain.train.script" if order["in_place"] else "hpctrain.train.session")
    gc.freeze()  # a collection in a rank would copy every page that it looks at
    gc.enable()
    pids: list[int] = []
    server = os.getpid()
    for env in order["ranks"]:
        try:
            pid = os.fork()
        except OSError:  # no more processes allowed
            for started in pids:
                os.kill(started, signal.SIGKILL)
            raise
        if pid == 0:
            _settle(order, env, server)
            rank_main(in_place=order["in_place"])
        pids.append(pid)
    os.write(1, json.dumps(pids).encode() + b"\n")
    os._exit(0)  # nothing to tear down here: what torch has set up belongs to the ranks now


def _settle(order: dict[str, Any], env: dict[str, str], server: int) -> None:
    """Make this fork of the server what a fresh process would be."""
    os.setpgid(0, 0)  # a Ctrl-C of the terminal reaches the supervisor alone, which relays it
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the server may have ignored it
    os.chdir(order["code"])
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["hpctrain.train", order["run"]]
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()  # forks must not draw the same numbers; Python's own generator sees to that itself
    while os.getppid() == server:  # until the supervisor has adopted this rank, which then asks to die with it
        time.sleep(0.0005)


if __name__ == "__main__":
    main()

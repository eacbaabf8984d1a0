"""A user's model and dataset, one rank of which does what hangs a run; copied into the project of a test."""

import ctypes
import os
import signal
import time

import torch
from torch import nn

_NAMES = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
RANK = int(next((os.environ[name] for name in _NAMES if name in os.environ), "0"))


class Net(nn.Module):
    """A linear layer that does `fault` from its pass `at` on, on one rank; `slow` tells how long parts take (s)."""

    def __init__(self, fault: str, rank: int, at: int, slow: dict[str, float]) -> None:
        super().__init__()
        self.body = nn.LazyLinear(10)
        self.fault = fault if rank == RANK else ""
        self.at, self.slow, self.passes = at, slow, 0
        self.register_state_dict_pre_hook(lambda *_: self.take("save"))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.passes += 1
            time.sleep(self.slow.get("step", 0) if self.passes > 3 else 0)
            if self.fault and self.passes >= self.at:
                getattr(self, self.fault)()
        else:
            self.take("evaluation")
        outputs: torch.Tensor = self.body(inputs.flatten(1))
        return outputs

    def take(self, what: str) -> None:
        if what in self.slow:
            print(f"now {what}", flush=True)
            time.sleep(self.slow[what])

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def dawdle(self) -> None:
        time.sleep(0.1)

    def spin(self) -> None:
        while True:
            self.passes += 1

    def hold_the_lock(self) -> None:
        ctypes.PyDLL(None).sleep(600)  # unlike CDLL it keeps the interpreter lock

    def meet_alone(self) -> None:
        torch.distributed.barrier()


def build(fault: str = "", rank: int = 0, at: int = 8, slow: dict[str, float] | None = None) -> nn.Module:
    net = Net(fault, rank, at, slow or {})
    net.take("building")
    net.body(torch.zeros(1, 4))
    return net


class Rows:
    """Rows of four numbers; those of `poison` are none; with `blocks`, rank 1 waits forever for some."""

    num_classes = 10

    def __init__(self, split: str, *, blocks: bool, poison: list[int]) -> None:
        self.reads = 0
        self.poison = poison if split == "train" else []
        self.count, self.blocks = (600 if split == "train" else 40), blocks and split == "train" and RANK == 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        if self.blocks and self.reads > 200:
            self.wait_for_a_server()
        row = torch.tensor([index / 600, index % 7 / 7, index % 11 / 11, index % 13 / 13])
        return row + float("nan" if index in self.poison else 0), index % 10

    def wait_for_a_server(self) -> None:
        signal.sigwait({signal.SIGHUP})


def rows(split: str, blocks: bool = False, poison: list[int] | None = None) -> Rows:
    return Rows(split, blocks=blocks, poison=poison or [])

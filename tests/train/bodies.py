"""What a rank of a test does once the group has formed."""

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from hpctrain.config.schema import Config
from hpctrain.dist.comm import Comm
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.loop import train
from hpctrain.train.stop import Cause, Stop
from hpctrain.world import World


class StopAt(Stop):
    """Told to stop at an exact step, as if the signal had come then."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def agree(self, done: int, comm: Comm) -> Cause | None:
        if done >= self.step:
            self.cause = "time_limit"
        found = super().agree(done, comm)
        self.next_step = done + 1
        return found


def _train(
    run: RunDir,
    attempt: int,
    config: Config,
    plan: Plan,
    world: World,
    comm: Comm,
    device: torch.device,
    stop: Stop,
    options: dict[str, Any],
) -> dict[str, Any]:
    outcome = train(run, attempt, config, plan, world, comm, device, stop, debug=options.get("debug", False))
    return {"outcome": msgspec.to_builtins(outcome)}


BODIES: dict[str, Callable[..., dict[str, Any]]] = {"train": _train}

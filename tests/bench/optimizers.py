"""What an update costs: one kernel for all parameters (fused), for each operation (foreach), for each parameter (loop).

    python tests/bench/optimizers.py [--repeats N]

The kinds take turns, so that all of them meet the same disturbance; medians of milliseconds, one thread, float32.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpctrain.config.schema import CnnArgs, MlpArgs, Optim, ResnetArgs
from hpctrain.models.plain import cnn, mlp
from hpctrain.models.resnet import resnet
from hpctrain.train.optim import build, groups

NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(MlpArgs(hidden=(256,)), (1, 28, 28), 10),
    "cnn": lambda: cnn(CnnArgs(channels=(16, 32), hidden=128), (1, 28, 28), 10),
    "resnet18": lambda: resnet(18, ResnetArgs(), (3, 224, 224), 1000),
}
KINDS: dict[str, dict[str, Any]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
TORCHS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adamax": (torch.optim.Adamax, {}),
    "adamw": (torch.optim.AdamW, {}),
}


def candidates(net: nn.Module, name: str) -> dict[str, Optimizer]:
    """Return the ways in which an optimizer can update a net."""
    if name in {"lars", "lamb"}:
        optim = Optim(name=name, lr=1.0, weight_decay=1e-4)  # type: ignore[arg-type]
        return {"ours": build(optim, groups(optim, net, "cnn"), scaled=False)}
    kind, options = TORCHS[name]
    fused = name in {"sgd", "adagrad", "adam", "amsgrad", "adamw"}
    chosen = {key: value for key, value in KINDS.items() if fused or key != "fused"}
    return {key: kind(net.parameters(), lr=1e-6, **options, **value) for key, value in chosen.items()}  # type: ignore[call-arg]


def main() -> None:
    """Print one row for each net and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| net | optimizer | fused | foreach | loop | ours |\n|---|---|---|---|---|---|")
    for net_name, make in NETS.items():
        net = make()
        for part in net.parameters():
            part.grad = torch.randn_like(part) * 1e-3
        for name in [*TORCHS, "lars", "lamb"]:
            made = candidates(net, name)
            times: dict[str, list[float]] = {key: [] for key in made}
            for turn in range(repeats + 2):
                for key, optimizer in made.items():
                    began = time.perf_counter()
                    optimizer.step()
                    if turn >= 2:
                        times[key].append(1e3 * (time.perf_counter() - began))
            cells = [f"{statistics.median(times[key]):.3f}" if key in times else "" for key in (*KINDS, "ours")]
            print(f"| {net_name} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

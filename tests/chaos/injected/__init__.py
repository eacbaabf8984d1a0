"""The user's model of the chaos tests: it does harm at an address (rank, step), once per run.

It is copied into a project as the package `chaos` and travels in the snapshot of each run. `model.args.folder` names a
directory with `addresses.json`, a list of {"kind", "rank", "step", "at"}; `at` is where in the step:

    forward, backward    in the first pass of the step after `step` steps
    stage, publish, published    while `step` is saved: a file is about to be written, the whole is about to be renamed
                         into ckpt/, that has just been done
    evaluate             in the first pass of the evaluation after `step` steps
    start                while the model is built, by attempt number `step`

A file that is made just before the harm is done proves that it was, and keeps it from happening again.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpctrain.world import from_env

from .harms import HELD_S, KINDS

_REHEARSED = 2  # samples of the passes that settle DDP, which belong to no step
_IN_A_SAVE = {"stage", "publish", "published"}
_PUBLISHED = re.compile(r"/ckpt/step_(\d{8})$")
_STAGED = re.compile(r"/stage/attempt_\d+/.*step_(\d{8})/.*\.safetensors")


class _Address:
    """One place at which harm is done."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self.kind, self.rank, self.step = given["kind"], given["rank"], given["step"]
        self.at, self.always = given.get("at", "forward"), given.get("always", False)
        self._marker = folder / f"{self.kind}-{self.at}-r{self.rank}-s{self.step}"
        self._left = self.always or not self._marker.exists()

    def is_due_in_save(self, step: int) -> bool:
        """Say whether it will be reached while the state after `step` steps is saved, perhaps by another thread."""
        return self._left and self.step == step and self.at in _IN_A_SAVE

    def claim(self, at: str, step: int) -> bool:
        """Say whether it is here and now, and that it has been done."""
        if not self._left or (at, step) != (self.at, self.step):
            return False
        self._left = False
        attempt = os.environ["HPCTRAIN_ATTEMPT"]
        name = self._marker.with_name(f"{self._marker.name}-{attempt}") if self.always else self._marker
        name.touch(exist_ok=False)
        return True


class _Net(nn.Module):
    """Two layers with dropout, and a count of the training passes that is part of the checkpoint."""

    passes: Tensor

    def __init__(self, folder: Path, accumulate: int, pause_ms: float, inputs: int) -> None:
        super().__init__()
        self._folder, self._accumulate, self._pause_ms = folder, accumulate, pause_ms
        self._rank = from_env().rank
        listed = json.loads((folder / "addresses.json").read_text())
        self._addresses = [_Address(folder, given) for given in listed if given["rank"] == self._rank]
        self._renamed: int | None = None
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.4), nn.Linear(24, 10)
        )
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.reach("start", int(os.environ["HPCTRAIN_ATTEMPT"]))
        sys.addaudithook(self._watch)

    def forward(self, images: Tensor) -> Tensor:
        step, within = divmod(int(self.passes), self._accumulate)
        logits: Tensor = self.body(images)
        if not self.training:
            if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
                self.reach("evaluate", step)
        elif len(images) > _REHEARSED:
            if within == 0:
                time.sleep(self._pause_ms / 1000)
                self._await_save(step)
                self.reach("forward", step)
                logits.register_hook(lambda _: self.reach("backward", step))
            self.passes += 1
        return logits

    def _await_save(self, step: int) -> None:
        """Stay in this step until harm is done to the save before it: how far a thread has come is chance."""
        deadline = time.monotonic() + HELD_S
        while any(address.is_due_in_save(step) for address in self._addresses) and time.monotonic() < deadline:
            time.sleep(0.002)

    def reach(self, at: str, step: int) -> None:
        """Do what is due here."""
        for address in self._addresses:
            if address.claim(at, step):
                print(f"chaos: {address.kind} at {at} of step {step}", file=sys.stderr, flush=True)
                KINDS[address.kind](self._folder)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See what this process does to its files, whichever thread does it: an audit hook of the interpreter."""
        if self._renamed is not None:
            step, self._renamed = self._renamed, None
            self.reach("published", step)
        if event == "os.rename" and (found := _PUBLISHED.search(os.fspath(arguments[1]))):
            self._note(os.fspath(arguments[0]), int(found[1]))
            self.reach("publish", int(found[1]))
            self._renamed = int(found[1])
        elif event == "open" and isinstance(arguments[0], str) and (found := _STAGED.search(arguments[0])):
            self.reach("stage", int(found[1]))

    def _note(self, source: str, step: int) -> None:
        """Write down each try to publish: by which attempt, when, and whether there is anything to rename."""
        there = Path(source).is_dir()
        record = {"attempt": int(os.environ["HPCTRAIN_ATTEMPT"]), "step": step, "there": there, "time": time.time()}
        descriptor = os.open(self._folder / "publications.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, json.dumps(record).encode() + b"\n")
        os.close(descriptor)


def build(folder: str, accumulate: int = 2, pause_ms: float = 0, inputs: int = 64) -> nn.Module:
    """Return the model.

    Args:
        folder: with the addresses; markers are left there.
        accumulate: passes per step, as in the config.
        pause_ms: added to each step.
        inputs: numbers of one sample.
    """
    return _Net(Path(folder), accumulate, pause_ms, inputs)


class _Squares:
    """Images `(1, 8, 8)` of bytes, each a function of its number."""

    num_classes = 10

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return (torch.arange(64).reshape(1, 8, 8) * (number % 7 + 1) % 251).to(torch.uint8), number % 10


def data(split: str) -> _Squares:
    """Return a dataset that threads read: 282 samples to train on, 40 to test."""
    return _Squares(282 if split == "train" else 40)

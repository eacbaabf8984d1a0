"""Saves the state of a run, and brings it back."""

from collections.abc import Callable

import msgspec
import torch

from hpctrain.config.schema import Config
from hpctrain.dist.comm import Comm
from hpctrain.manifest import Manifest
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train import rng, space
from hpctrain.train.average import Average
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.evaluations import Evaluations
from hpctrain.train.grace import Grace
from hpctrain.train.heartbeat import Phase
from hpctrain.train.history import History
from hpctrain.train.metrics import Timer
from hpctrain.train.prepare import Parts
from hpctrain.train.saver import Saver
from hpctrain.train.snapshot import Buffers, checkpoint_bytes


class Keeper:
    """The checkpoints of one attempt, as all ranks together write and read them.

    Args:
        run: where they lie.
        attempt: its number.
        config: of the run.
        plan: of the run.
        parts: what has a state.
        average: of the weights, if there is one.
        history: of the evaluations.
        comm: the ranks.
        device: of this rank.
    """

    def __init__(
        self,
        run: RunDir,
        attempt: int,
        config: Config,
        plan: Plan,
        parts: Parts,
        average: Average | None,
        history: History,
        comm: Comm,
        device: torch.device,
    ) -> None:
        self._run, self._config, self._comm, self._device = run, config, comm, device
        self._parts, self._average, self._history = parts, average, history
        self._checkpoints = Checkpoints(run, attempt, plan, config)
        self._saver: Saver | None = None

    def resume(self) -> Manifest | None:
        """Shut out older attempts, then restore the newest checkpoint that verifies; None if there is none yet.

        Raises:
            CheckpointError: it does not fit the config, this attempt is outdated, or all that are there are damaged.
        """
        if self._comm.rank == 0:
            self._checkpoints.fence()
        return self.restore()

    def restore(self) -> Manifest | None:
        """Put the newest checkpoint that verifies into what is trained; None if there is none yet.

        Rank 0 chooses, so that all go on from the same.

        Raises:
            CheckpointError: it does not fit the config, or all that are there are damaged.
        """
        comm, parts = self._comm, self._parts
        choice = b""
        if comm.rank == 0:
            manifest, damaged = self._checkpoints.newest()
            for message in damaged:
                print(f"hpctrain: skipped a checkpoint: {message}", flush=True)
            if manifest is not None:
                choice = manifest.encode()
        choice = comm.broadcast(choice)
        if not choice:
            return None
        manifest = msgspec.json.decode(choice, type=Manifest)
        notes = self._checkpoints.load(
            manifest, parts.model, parts.step, self._average, rank=comm.rank, device=self._device
        )
        self._history.restore(manifest.losses)
        if comm.rank == 0:
            print(f"hpctrain: going on from step {manifest.step}, saved by {manifest.ranks} ranks", flush=True)
            for note in notes:
                print(f"hpctrain: {note}", flush=True)
        return manifest

    def open(
        self,
        steps: int,
        evaluations: Evaluations,
        timer: Timer,
        grace: Grace | None,
        enter: Callable[[Phase, int], None],
        *,
        debug: bool,
    ) -> None:
        """Get ready to save; only the rank with a `grace`, rank 0, writes.

        Args:
            steps: that are to be done.
            evaluations: know the score of a step.
            timer: of the training, which stops meanwhile.
            grace: wants to know how long a save takes.
            enter: shows the watchdog what this rank does.
            debug: save in the foreground.

        Raises:
            DiskFullError: there is no room for the checkpoints.
        """
        self._evaluations, self._timer, self._enter = evaluations, timer, enter
        if grace is None:
            return
        config = self._config
        if steps:
            rows = {name: state.expand(self._comm.size, -1) for name, state in rng.capture(self._device).items()}
            space.check(self._run, config.checkpoint, checkpoint_bytes(config, self._parts.model, rows))
        background = config.checkpoint.background and not debug
        self._saver = Saver(self._checkpoints, Buffers(self._device), background=background, on_saved=grace.saved)

    def save(self, done: int, *, evaluated: bool) -> None:
        """Save the state after `done` steps; every rank calls this.

        Args:
            done: steps.
            evaluated: an evaluation that is due at this step has been done.

        Raises:
            CheckpointError: this save, or the one before, failed.
        """
        self._timer.pause()
        states = rng.gather(self._comm, self._device)
        if self._saver is not None:
            self._enter(Phase.CHECKPOINT, done)
            parts = self._parts
            self._saver.save(done, parts.model, parts.step, self._average, states, evaluated=evaluated,
                             score=self._evaluations.score_at(done), score_name=parts.objective.score_name,
                             losses=self._history.losses)  # fmt: skip
        self._timer.go_on()

    def evaluated(self, done: int) -> None:
        """Note in the checkpoint after `done` steps what an evaluation gave that was made after it was saved.

        Raises:
            CheckpointError: it cannot be written, or a newer attempt has shut this one out.
        """
        if self._saver is not None:
            self._enter(Phase.CHECKPOINT, done)
            self._checkpoints.amend(done, score=self._evaluations.score_at(done), losses=self._history.losses)

    def poll(self) -> None:
        """Say that a save has ended, if one has; costs nothing that can be measured."""
        if self._saver is not None:
            self._saver.poll()

    def wait(self) -> None:
        """Wait for the save in flight, if there is one."""
        if self._saver is not None:
            self._saver.wait()

    def finish(self, done: int) -> None:
        """Wait for the save in flight at the end, after `done` steps."""
        if self._saver is not None:
            self._enter(Phase.CHECKPOINT, done)
            self._saver.wait()

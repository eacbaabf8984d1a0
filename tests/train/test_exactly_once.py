"""Each sample once per epoch, end to end: real ranks, stopped at any step and gone on with by others."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from hpctrain.config.duration import Duration
from tests.train.ranks import Job, Ranks, make_config

pytestmark = pytest.mark.torch

CASES = 50
EPOCHS = 2


def ledger(jobs: list[Job]) -> dict[int, tuple[int, list[int]]]:
    """Return step -> its epoch and the samples of all ranks, from the records of all attempts; none has two records."""
    steps: dict[int, tuple[int, list[int]]] = {}
    for job in jobs:
        mine: dict[int, tuple[int, list[int]]] = {}
        for rank in range(len(job.processes)):
            for line in map(json.loads, job.run.samples(job.attempt, rank).read_text().splitlines()):
                epoch, ids = mine.setdefault(line["step"], (line["epoch"], []))
                assert epoch == line["epoch"]
                ids.extend(line["ids"])
        assert not steps.keys() & mine.keys()
        steps |= mine
    return steps


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More small pictures in class folders than any case takes."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 125), ("val", 2)):
        for colour in ("blue", "red"):
            (root / split / colour).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (9, 8), colour).save(root / split / colour / f"{number:03}.jpg")
    return root


@pytest.mark.parametrize("case", range(CASES))
def test_each_sample_once_however_the_run_is_cut(ranks: Ranks, pictures: Path, case):
    draw = random.Random(case)  # noqa: S311 - a case, not a secret
    samples, global_batch = draw.randint(30, 250), draw.choice([12, 24, 36])
    tail = draw.choice(["keep", "keep", "drop"])
    per_epoch = samples // global_batch if tail == "drop" else -(-samples // global_batch)
    ways = [(size, passes) for size in (1, 2, 3, 4) for passes in (1, 2, 3) if not global_batch % (size * passes)]
    cut = draw.randint(1, EPOCHS * per_epoch - 1)
    run, jobs = ranks.run_dir(), []
    read = {"dataset": "folder", "path": str(pictures), "args": {"size": 8, "resize": 8}} if case % 2 else {}
    data = read | {
        "samples": samples,
        "workers": draw.choice(["auto", "1", "2", "3"]),
        "shuffle": draw.choice(["full", "blocks"]),
        "block": draw.choice([4, 16]),
    }
    for until in (cut, None):
        size, passes = draw.choice(ways)
        config = make_config(
            data=data,
            model={"args": {"hidden": [4]}},
            batch={"global_": global_batch, "accumulate": passes, "tail": tail},
            train={"epochs": EPOCHS, "eval_every": Duration(EPOCHS, "epochs")},
            log={"samples": True},
        )
        jobs.append(ranks.start(config, size, run=run, until=until))
        assert jobs[-1].outcome()["step"] == (until or EPOCHS * per_epoch)
    steps = ledger(jobs)
    assert sorted(steps) == list(range(1, EPOCHS * per_epoch + 1))
    for number in range(EPOCHS):
        seen = Counter(sample for epoch, ids in steps.values() if epoch == number for sample in ids)
        assert set(seen.values()) == {1}
        assert set(seen) <= set(range(samples))
        assert len(seen) == (per_epoch * global_batch if tail == "drop" else samples)

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from hpctrain import processes
from hpctrain.config.datasets import Data
from hpctrain.errors import DataError, JobError, UsageError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

CPU = torch.device("cpu")

MODULE = """
import os
import random
import time

import numpy as np
import torch
from PIL import Image


class Set:
    def __init__(self, count, make, classes=3):
        self.count, self.make, self.num_classes = count, make, classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index), index % 3


def numbers(split, width=2):
    return Set(40 if split == "train" else 8, lambda index: torch.full((width,), float(index)))

def images(split):
    return Set(40, lambda index: np.full((1, 4, 4), index, np.uint8))

def pil(split):
    return Set(5, lambda index: Image.new("RGB", (3, 2), (index, 10, 255)))

def draws(split):
    return Set(40, lambda index: torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]))

def process(split):
    return Set(40, lambda index: np.array([os.getpid(), float(index)]))

def ragged(split):
    return Set(40, lambda index: torch.zeros(2 + (index == 7)))

def labels(split):
    return Set(40, lambda index: torch.zeros(2), classes=2)

def broken(split):
    return Set(40, lambda index: torch.zeros(1) / (index - 7) if index != 7 else 1 // 0)

def dies(split):
    return Set(40, lambda index: torch.zeros(2) if index < 20 else os._exit(9))

def slow(split):
    return Set(40, lambda index: torch.zeros(2) if index < 1 else time.sleep(600))

def whole(split):
    return Set(40, lambda index: torch.tensor([1, 2]))

def raises(split):
    raise KeyError("no such file")

def nothing(split):
    return Set(0, None)

def stream(split):
    return iter([])

def unnamed(split):
    return [(torch.zeros(1), 0)]

def named(split):
    made = Set(6, lambda index: torch.zeros(1))
    made.classes = ["a", "b", "c", "d"]
    return made
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "owndata.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "owndata", raising=False)


def section(name, **keys):
    return msgspec.convert({"dataset": f"owndata:{name}", "workers": "2", **keys}, Data)


def opened(name, *, samples=None, seed=0, **keys):
    from hpctrain.data import user

    class Known(msgspec.Struct):
        train_samples: int | None
        seed: int

    return user.load(section(name, **keys), Known(samples, seed), device=CPU, dtype=torch.float64)


def batches(part, *ids, epoch=0):
    from hpctrain.data.dataset import Wanted

    return list(part.stream(Wanted(torch.tensor(one), epoch) for one in ids))


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_inputs_and_classes_reach_the_batch(loader):
    data = opened("numbers", loader=loader, args={"width": 3}, split={"validation": 0.25})
    assert (data.train.count, data.validation.count, data.test.count) == (30, 10, 8)
    assert (data.shape, data.outputs, data.task) == ((3,), 3, "classes")
    [(inputs, labels), (more, _)] = batches(data.test, [7, 0, 7], [1])
    assert inputs.dtype == torch.float64
    assert inputs.tolist() == [[7.0] * 3, [0.0] * 3, [7.0] * 3]
    assert labels.tolist() == [1, 0, 1]
    assert more.tolist() == [[1.0] * 3]
    if loader == "threads":
        found = [
            int(batches(part, list(range(part.count)))[0][0][:, 0].sum()) for part in (data.train, data.validation)
        ]
        assert sum(found) == sum(range(40))


def test_bytes_become_numbers_in_0_to_1():
    data = opened("images")
    [(inputs, _)] = batches(data.train, [39, 5])
    assert inputs.shape == (2, 1, 4, 4)
    assert torch.allclose(inputs[:, 0, 0, 0], torch.tensor([39, 5], dtype=torch.float64) / 255)


def test_pil_images_are_channels_height_width():
    data = opened("pil")
    [(inputs, _)] = batches(data.train, [4])
    assert data.shape == (3, 2, 3)
    assert torch.allclose(inputs[0, :, 1, 2] * 255, torch.tensor([4, 10, 255], dtype=torch.float64))


def test_counting_asks_for_the_test_set_only_where_it_is_used():
    from hpctrain.data import user

    assert user.count(section("numbers")) == (40, 8)
    assert user.count(section("numbers", split={"test": 0.5})) == (40, None)


def test_classes_are_named_as_torchvision_does():
    assert opened("named").outputs == 4


@pytest.mark.parametrize(("name", "error", "message"), [
    ("missing", UsageError, "data.dataset: 'missing' does not exist in "),
    ("raises", JobError, "data.dataset: owndata:raises(split='train') raised KeyError: 'no such file'\n"),
    ("nothing", JobError, "data.dataset: owndata:nothing(split='train') returned an empty owndata.Set, not a map-st"),
    ("stream", JobError, "data.dataset: owndata:stream(split='train') returned a builtins.list_iterator, not a map"),
    ("unnamed", JobError, "data.dataset: owndata:unnamed does not say how many classes there are"),
    ("whole", DataError, "data.dataset: sample 0 of owndata:whole(split='train') has an input of torch.int64"),
])  # fmt: skip
def test_what_is_no_dataset_is_refused_at_once(name, error, message):
    with pytest.raises(error) as caught:
        opened(name)
    assert type(caught.value) is error
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("loader", ["threads", "processes"])
@pytest.mark.parametrize(("name", "message"), [
    ("ragged", ("data.dataset: sample 7 of owndata:ragged(split='train') has an input of shape (3,) and "
               "torch.float32; the first one has (2,) and torch.float32\n  let all have the same")),
    ("labels", "data.dataset: sample 2 of owndata:labels(split='train') has the class 2; there are 2, from 0"),
    ("broken", "data.dataset: sample 7 of owndata:broken(split='train') raised ZeroDivisionError: "),
])  # fmt: skip
def test_bad_samples_are_named(loader, name, message):
    data = opened(name, loader=loader)
    with pytest.raises(DataError) as caught:
        batches(data.train, [0, 1], list(range(10)))
    assert str(caught.value).startswith(message)
    if name == "broken":
        assert "owndata.py" in str(caught.value)


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_a_bad_sample_may_be_skipped(loader, capsys):
    data = opened("broken", loader=loader, on_error="skip")
    [(_, labels)] = batches(data.train, [6, 7])
    assert labels.tolist() == [0, 2]
    assert capsys.readouterr().out.startswith("hpctrain: skipped sample 7: data.dataset: sample 7 of owndata:broken")


def test_processes_key_what_a_sample_draws_by_seed_epoch_and_sample():
    def drawn(workers, *ids, epoch=1, seed=0):
        data = opened("draws", loader="processes", workers=workers, seed=seed)
        return torch.cat([inputs for inputs, _ in batches(data.train, *ids, epoch=epoch)])

    first = drawn("2", list(range(20)))
    assert first.unique().numel() == first.numel() == 60
    assert torch.equal(drawn("1", *[[one] for one in range(20)]), first)
    assert not torch.equal(drawn("1", list(range(20)), epoch=2), first)
    assert not torch.equal(drawn("1", list(range(20)), seed=1), first)


def tasks_signals(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)


def test_processes_see_no_signals_of_the_job_and_end_with_the_stream():
    data = opened("process", loader="processes")
    from hpctrain.data.dataset import Wanted

    coming = data.train.stream(Wanted(torch.arange(first, first + 30)) for first in [0, 10] * 10)
    pids = {int(pid) for pid in torch.cat([next(coming)[0] for _ in range(6)])[:, 0].unique()}
    assert pids
    assert os.getpid() not in pids
    for pid in pids:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            assert tasks_signals(pid) >> (number - 1) & 1
    started = {pid: processes.start_time(pid) for pid in pids}
    coming.close()
    assert not any(processes.is_alive(pid, when) for pid, when in started.items())


def test_closing_does_not_wait_for_a_sample_of_a_process():
    from hpctrain.data.dataset import Wanted

    data = opened("slow", loader="processes")
    coming = data.train.stream([Wanted(torch.tensor([0])), Wanted(torch.tensor([1])), Wanted(torch.tensor([2]))])
    next(coming)
    coming.close()  # the test's own time limit is shorter than that sample's


def test_a_process_that_dies_is_an_error():
    data = opened("dies", loader="processes")
    with pytest.raises(DataError) as caught:
        batches(data.train, [0, 1], [19, 20])
    assert caught.value.message == "a process of the loader died with code 9 while it read the samples [19, 20]"


def test_processes_die_with_the_one_that_uses_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import sys, time
import msgspec, torch
from hpctrain.config.datasets import Data
from hpctrain.data import user
from hpctrain.data.dataset import Wanted

class Plan(msgspec.Struct):
    train_samples: int | None = None
    seed: int = 0

data = msgspec.convert({"dataset": "owndata:process", "loader": "processes", "workers": "1"}, Data)
loaded = user.load(data, Plan(), device=torch.device("cpu"), dtype=torch.float64)
stream = loaded.train.stream(Wanted(torch.tensor([0])) for _ in range(9))
print(int(next(stream)[0][0, 0]), flush=True)
time.sleep(600)
""")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE, text=True) as started:
        pid = int(started.stdout.readline())
        when = processes.start_time(pid)
        assert when is not None
        started.kill()
    deadline = time.monotonic() + 60
    while processes.is_alive(pid, when) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes.is_alive(pid, when)

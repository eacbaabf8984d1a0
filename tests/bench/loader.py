"""Pictures a second to a ready uint8 batch (B, 3, 224, 224): random-resized crops of real JPEG files; interleaved.

    python tests/bench/loader.py [--rounds 5] [--seconds 5] [--threads 1 2] [--peers PYTHON]
        [--contenders ours decode dataloader ...] [--clock wall|cpu]

Needs $HPCTRAIN_DATA/imagenet-sample.tar. Peers run by a Python of their own, which has torch, torchvision, webdataset
and, for `ffcv`, FFCV; without --peers they are left out. Each contender is a process, bound to as many CPUs as it
has threads (or worker processes), reads all pictures once to warm up, and then for --seconds, again and again. Files
lie in memory (the page cache). Prints medians and quartiles over the rounds, a second and a thread, and the medians of
the ratios to `ours` of each round. On a busy machine, `--clock cpu --threads 1` divides by the time that the process
spent on a CPU instead. `ours_28` and `dataloader_28` are samples 1 x 28 x 28 from memory, to floats.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZE, BATCH, COUNT_28, BATCH_28 = 224, 50, 60_000, 1024
OURS = ("ours", "decode", "ours_28")
PEERS = ("dataloader", "webdataset", "ffcv", "dataloader_28")


def ours(work: Path, threads: int) -> Iterator[int]:
    """Ours: hpctrain's loader, as training uses it, up to the batch of bytes."""
    import torch

    from hpctrain.config.datasets import Data, FolderArgs
    from hpctrain.data.dataset import Wanted
    from hpctrain.data.loader import Loader
    from hpctrain.data.pictures import Rows
    from hpctrain.data.split import Chosen

    class Files:
        names: tuple[str, ...] = ("all",)
        paths = tuple(sorted((work / "files").glob("*/*")))

        def __len__(self) -> int:
            return len(self.paths)

        def read(self, index: int) -> tuple[bytes | Any, int]:
            return self.paths[index].read_bytes(), index

        def where(self, index: int) -> str:
            return str(self.paths[index])

    source = Files()
    chosen = Chosen(len(source), 0, 0, len(source), permuted=False)
    rows = Rows(source, chosen, len(source), Data(dataset="folder"), FolderArgs(), 0, training=True)
    cpu = torch.device("cpu")
    loader = Loader(lambda _: rows, rows.kind, count=len(source), device=cpu, workers=str(threads))
    endless = (
        Wanted(torch.arange(first, min(first + BATCH, len(source))), epoch)
        for epoch in range(10**6)
        for first in range(0, len(source), BATCH)
    )
    yield from loader.stream(endless, lambda _, inputs, __: len(inputs))


def decode(work: Path, threads: int) -> Iterator[int]:
    """Decoding alone, as ours does it, from memory: what no loader can beat that decodes whole pictures."""
    import queue
    import threading

    import simplejpeg

    contents = [path.read_bytes() for path in sorted((work / "files").glob("*/*"))]
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(mine: list[bytes]) -> None:
        while True:
            for first in range(0, len(mine), BATCH):
                for content in mine[first : first + BATCH]:
                    simplejpeg.decode_jpeg(content, fastdct=True)
                done.put(len(mine[first : first + BATCH]))

    for number in range(threads):
        threading.Thread(target=run, args=(contents[number::threads],), daemon=True).start()
    while True:
        yield done.get()


def chain() -> Any:
    """Return torchvision's transforms up to the bytes."""
    import torch

    if torch.version.cuda is None:  # torchvision's operators are not there with the CPU's torch; transforms need none
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import transforms

    return transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()])


def dataloader(work: Path, threads: int) -> Iterator[int]:
    """A DataLoader of torch over torchvision's ImageFolder, with Pillow."""
    import torch

    transform = chain()
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    loader: Any = torch.utils.data.DataLoader(
        ImageFolder(str(work / "files"), transform),
        BATCH,
        shuffle=True,
        num_workers=0 if threads == 1 else threads,
        persistent_workers=threads > 1,
    )
    while True:
        for images, _ in loader:
            yield len(images)


def webdataset(work: Path, threads: int) -> Iterator[int]:
    """WebDataset over tar shards, with Pillow and torchvision's transforms."""
    import torch

    transform = chain()
    import webdataset as wds

    torch.set_num_threads(1)
    shards = sorted(str(path) for path in (work / "shards").glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=False, resampled=True, workersplitter=None, nodesplitter=None)
        .shuffle(100)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, lambda label: label)
        .batched(BATCH)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=0 if threads == 1 else threads)
    for images, _ in loader:
        yield len(images)


def ffcv(work: Path, threads: int) -> Iterator[int]:
    """FFCV over its own file."""
    import numpy as np
    from ffcv.fields import IntField, RGBImageField, rgb_image
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter
    from PIL import Image

    made = work / "pictures.beton"
    if not made.exists():
        paths = sorted((work / "files").glob("*/*"))

        class Pictures:
            def __len__(self) -> int:
                return len(paths)

            def __getitem__(self, index: int) -> tuple[Any, int]:
                current.append(np.frombuffer(paths[index].read_bytes(), np.uint8))
                return np.array(Image.open(paths[index]).convert("RGB")), index

        # It would encode again, with colours at half the resolution, which are decoded faster: it gets the same bytes.
        current: list[Any] = []
        rgb_image.encode_jpeg = lambda _pixels, _quality: current[-1]
        fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
        DatasetWriter(str(made), fields, num_workers=1).from_indexed_dataset(Pictures())
    pipelines = {"image": [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), ToTensor(), ToTorchImage()], "label": None}
    loader = Loader(
        str(made), batch_size=BATCH, num_workers=threads, order=OrderOption.RANDOM, os_cache=True, pipelines=pipelines
    )
    while True:
        for batch in loader:
            yield len(batch[0])


def ours_28(work: Path, threads: int) -> Iterator[int]:
    """Ours: hpctrain's samples in memory."""
    import torch

    from hpctrain.data.batches import Batches
    from hpctrain.data.dataset import Wanted
    from hpctrain.data.memory import InMemory

    torch.set_num_threads(threads)
    images, labels = torch.randint(0, 256, (COUNT_28, 1, 28, 28), dtype=torch.uint8), torch.zeros(COUNT_28).long()
    part = InMemory(images, labels, count=COUNT_28, mean=(0.13,), std=(0.3,), white=255, dtype=torch.float32)
    steps = COUNT_28 // BATCH_28
    batches = Batches(samples=COUNT_28, global_batch=BATCH_28, steps_per_epoch=steps, accumulate=1, rank=0, ranks=1,
                      seed=0)  # fmt: skip
    for inputs, _ in part.stream(Wanted(batches[step].passes[0]) for step in range(10**9)):
        yield len(inputs)


def dataloader_28(work: Path, threads: int) -> Iterator[int]:
    """A DataLoader of torch over the same, normalised sample by sample."""
    import torch

    torch.set_num_threads(1)
    images, labels = torch.randint(0, 256, (COUNT_28, 1, 28, 28), dtype=torch.uint8), torch.zeros(COUNT_28).long()

    class Set:
        def __len__(self) -> int:
            return COUNT_28

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return images[index].float().div_(255).sub_(0.13).div_(0.3), labels[index]

    workers = 0 if threads == 1 else threads
    loader: Any = torch.utils.data.DataLoader(Set(), BATCH_28, shuffle=True, num_workers=workers)  # type: ignore[arg-type]
    while True:
        for inputs, _ in loader:
            yield len(inputs)


CONTENDERS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    "ours": ours,
    "decode": decode,
    "dataloader": dataloader,
    "webdataset": webdataset,
    "ffcv": ffcv,
    "ours_28": ours_28,
    "dataloader_28": dataloader_28,
}


def one(name: str, work: Path, threads: int, seconds: float, clock: str) -> None:
    """Run one contender in this process and print its samples a second."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    coming = CONTENDERS[name](work, threads)
    warm = 0
    while warm < 400:
        warm += next(coming)
    count, began = 0, time.perf_counter()
    used = time.process_time()
    while (passed := time.perf_counter() - began) < seconds:
        count += next(coming)
    if clock == "cpu":
        passed = (time.process_time() - used) / threads
    print(count / passed, flush=True)
    os._exit(0)  # workers and threads of the peers are left to end by themselves


def prepare(work: Path) -> None:
    """Unpack the pictures as class folders, and pack them as shards."""
    sample = Path(os.environ["HPCTRAIN_DATA"]) / "imagenet-sample.tar"
    with tarfile.open(sample) as archive:
        archive.extractall(work / "files", filter="data")
    (work / "shards").mkdir()
    paths = sorted((work / "files").glob("*/*"))
    for shard in range(4):
        with tarfile.open(work / "shards" / f"{shard}.tar", "w") as archive:
            for number in range(shard, len(paths), 4):
                archive.add(paths[number], f"{number:06}.jpg")
                label = work / "label"
                label.write_text(str(number))
                archive.add(label, f"{number:06}.cls")


def run(python: str, name: str, work: Path, threads: int, seconds: float, clock: str) -> float:
    """Run one contender in a process of its own; a peer that stalls is an error after some minutes."""
    argv = [python, __file__, "--one", name, "--work", str(work), "--threads", str(threads), "--seconds", str(seconds)]
    argv += ["--clock", clock]
    ended = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=seconds + 300)
    return float(ended.stdout.split()[-1])


def show(rates: dict[tuple[str, int], list[float]]) -> None:
    """Print medians and quartiles, and how they compare."""
    for (name, threads), found in rates.items():
        each = [rate / threads for rate in found]
        low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
        base = rates.get(("ours_28" if name.endswith("_28") else "ours", threads), [])
        ratios = [mine / rate for mine, rate in zip(base, found, strict=False)]
        compared = f"  ours / this {statistics.median(ratios):.3f}" if ratios else ""
        print(f"{name:<14}{threads} x {middle:>9,.0f} a second  ({low:,.0f} - {high:,.0f}, n={len(each)}){compared}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", help="Python of the peers")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.work, given.threads[0], given.seconds, given.clock)
    names = given.contenders or [*OURS, *(PEERS if given.peers else ())]
    work = Path(tempfile.mkdtemp())
    rates: dict[tuple[str, int], list[float]] = {(name, threads): [] for threads in given.threads for name in names}
    try:
        prepare(work)
        for _ in range(given.rounds):
            for (name, threads), found in rates.items():
                python = given.peers if name in PEERS else sys.executable
                found.append(run(python, name, work, threads, given.seconds, given.clock))
    finally:
        shutil.rmtree(work)
    show(rates)


if __name__ == "__main__":
    main()

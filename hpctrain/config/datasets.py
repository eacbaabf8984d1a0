"""The section `data` of the config: what is trained on, how it is split, read and varied."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hpctrain.config.texts import Column, Count, Fold, Fraction, Function, Line, NonNegative, Path, Positive, Workers


class SyntheticArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `dataset: synthetic`."""

    shape: tuple[Positive, Positive, Positive] = (1, 28, 28)
    """Shape of one image: channels, height, width."""
    classes: Annotated[int, Meta(ge=2)] = 10
    """Number of classes."""


class NoArgs(Struct, frozen=True, kw_only=True):
    """A choice that takes no arguments."""


class PictureArgs(Struct, frozen=True, kw_only=True):
    """What is made of encoded pictures (JPEG, PNG) of any size."""

    size: Positive = 224
    """Height and width of the pictures that the model gets."""
    resize: Positive = 256
    """For evaluation: length of the shorter side before the centre is cut out."""
    channels: Literal["rgb", "grey"] = "rgb"
    """rgb: three channels; grey: one."""
    mean: tuple[float, ...] | None = None
    """Of each channel of pixels in 0 to 1; ImageNet's if absent."""
    std: tuple[Annotated[float, Meta(gt=0)], ...] | None = None
    """Of each channel of pixels in 0 to 1; ImageNet's if absent."""


class FolderArgs(PictureArgs, frozen=True, kw_only=True):
    """Arguments of `dataset: folder`."""

    train: Line = "train"
    """Directory of the training pictures below `path`, one directory for each class; `.` is `path` itself."""
    test: Line | None = "val"
    """Directory of the test pictures; null where `split.test` sets some apart."""


class ShardsArgs(PictureArgs, frozen=True, kw_only=True):
    """Arguments of `dataset: shards`."""

    train: Line = "train-*.tar"
    """Pattern of the training shards below `path`."""
    test: Line | None = "val-*.tar"
    """Pattern of the test shards; null where `split.test` sets some apart."""


class CifarArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `dataset: cifar10` and `cifar100`."""

    only: tuple[Line, ...] = ()
    """Names of the classes to keep, such as [airplane, bird]; all if empty."""


class TableArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `dataset: table`: a CSV file, `path` itself."""

    columns: tuple[Column, ...] = ()
    """Names of the columns, where the file's first line does not have them."""
    target: Column
    """Column to predict."""
    categories: tuple[Column, ...] = ()
    """Columns of words, each of which becomes one input for every word that the training samples have."""
    leave_out: tuple[Column, ...] = ()
    """Columns that are no inputs."""
    task: Literal["regression", "classification"] = "regression"
    """regression: predict the number; classification: the target's words or numbers are names of classes."""
    offset: float = 0.0
    """Is added to the target of a regression, such as 1.5 where age = rings + 1.5."""
    delimiter: Annotated[str, Meta(extra={"pattern": r"[^\n\r\"]|\\t", "expect": "one character"})] = ","
    """Between two columns."""


class PointsArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `dataset: points`."""

    kind: Literal["line", "separable", "clusters", "xor"]
    """line: y = 2 x1 - 3 x2 + 0.5, a number; separable: two classes, at least 0.2 from the line 0.6 x1 + 0.8 x2 = 0;
    clusters: two classes around (-1, -0.5) and (1, 0.5); xor: the corners of a square in turn, of class 1 where exactly
    one of x1 and x2 is 1."""
    count: Positive = 200
    """Training points."""
    test_count: Positive = 100
    """Test points, which are others unless there is no noise to tell them apart; leave it out with `split.test`."""
    noise: NonNegative = 0.0
    """Standard deviation of what is added: to y of a line, else to both coordinates."""
    seed: Count = 0
    """Of the points; the seed of the run draws weights, order and splits."""


class Split(Struct, frozen=True, kw_only=True):
    """Samples that are set apart from the training set, by a permutation that `seed` gives."""

    test: Fraction = 0.0
    """Fraction for testing; for datasets that have no test set of their own."""
    validation: Fraction = 0.0
    """Fraction for validation, which is then what is evaluated during training; the test set is looked at once, at
    the end."""
    fold: Fold | None = None
    """k/K: the k-th of K equal parts is for validation."""


class Augment(Struct, frozen=True, kw_only=True):
    """How training samples are varied, by draws for (seed, epoch, sample), or (seed, step, micro-batch) to mix them."""

    crop: Literal["auto", "none", "resized", "padded"] = "auto"
    """resized: random area and shape, scaled to the size (Szegedy et al. 2015); padded: the image moves inside of a
    margin of `padding`; auto: resized for encoded pictures, none for others."""
    scale: tuple[Annotated[float, Meta(gt=0, le=1)], Annotated[float, Meta(gt=0, le=1)]] = (0.08, 1.0)
    """Smallest and largest part of the area for `crop: resized`."""
    ratio: tuple[Annotated[float, Meta(gt=0)], Annotated[float, Meta(gt=0)]] = (0.75, 1.3333333333333333)
    """Smallest and largest width / height for `crop: resized`."""
    padding: Positive = 4
    """Pixels of the margin for `crop: padded`."""
    flip: bool = False
    """Mirror left and right, every second image on average."""
    jitter: NonNegative = 0.0
    """Change brightness, contrast and saturation (of three channels), in this order, each by a factor between
    1 - jitter (at least 0) and 1 + jitter."""
    cutout: Annotated[int, Meta(ge=0)] = 0
    """Side of a square that is set to the mean (DeVries & Taylor 2017); 0: none."""
    mixup: NonNegative = 0.0
    """Alpha of mixup (Zhang et al. 2018); 0: none."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix (Yun et al. 2019); 0: none. With mixup, one of the two is drawn for each micro-batch."""
    label_smoothing: Fraction = 0.0
    """Part of the label that is spread over all classes (Szegedy et al. 2016)."""


class Data(Struct, frozen=True, kw_only=True):
    """The dataset."""

    dataset: (
        Literal["mnist", "digits", "points", "synthetic", "idx", "cifar10", "cifar100", "folder", "shards", "table"]
        | Function
    )
    """mnist: IDX files, .gz or not; idx: others of that family, by the same names; digits: 1,797 real handwritten
    8 x 8 digits that come along; points: a few points in the plane, for first exercises; synthetic: random images for
    benchmarks; cifar10, cifar100: their binary files; folder: pictures in one directory for each class; shards: tar
    files as WebDataset writes them, see `hpctrain pack`; table: a CSV file; or the user's own function as
    package.module:function, called with `split` (train or test) and `args`, and returning a map-style dataset of
    (input, label)."""
    path: Path | None = None
    """Directory of the files, or the file of a table; for mnist `$HPCTRAIN_DATA/mnist` if absent."""
    samples: Positive | None = None
    """Use only the first so many training samples; for synthetic: how many there are (default 10,000)."""
    split: Split = Split()
    shuffle: Literal["full", "blocks"] = "full"
    """Order of the training samples: full: any may follow any; blocks: runs of `block` neighbours in random order,
    shuffled among 16 to 32 runs, for disks and network file systems that read neighbours faster."""
    block: Annotated[int, Meta(ge=2)] = 256
    """Samples of a run with `shuffle: blocks`."""
    workers: Workers = "auto"
    """Threads (or processes) of each rank that read and decode; auto: one, doubled as long as training waits for
    batches and that makes them come faster, at most the CPUs of the rank."""
    loader: Literal["threads", "processes"] = "threads"
    """processes: for a dataset of the user's own that holds Python's lock, or draws random numbers."""
    on_error: Literal["stop", "skip"] = "stop"
    """A sample that cannot be read ends the run, or is replaced by the next one by number that can, and logged once.
    More of them on one rank than a thousandth of the samples, and than one, end the run."""
    stage: Line | None = None
    """Directory on the node, such as $SLURM_TMPDIR, to which each node copies the shards before training."""
    augment: Augment = Augment()
    args: dict[str, Any] = {}
    """Arguments of the dataset."""


DATASET_ARGS: dict[str, type[Struct]] = {
    "mnist": NoArgs,
    "digits": NoArgs,
    "points": PointsArgs,
    "synthetic": SyntheticArgs,
    "idx": NoArgs,
    "cifar10": CifarArgs,
    "cifar100": CifarArgs,
    "folder": FolderArgs,
    "shards": ShardsArgs,
    "table": TableArgs,
}
"""The classes of the arguments of the datasets."""

"""Count a dataset that takes a while to count: `python -m hpctrain.data.count`, for `hpctrain submit` and `run`.

The config's section `data` comes as JSON on standard input; `plan.Samples` goes as JSON to standard output, and
progress to standard error. What was listed stays in the cache for the ranks.
"""

import sys
from pathlib import Path

import msgspec

from hpctrain.config import schema
from hpctrain.data import index, listing
from hpctrain.data.locate import Found, folder_found, locate, samples_of, shards_found
from hpctrain.data.progress import Progress
from hpctrain.errors import DataError, HpctrainError, UsageError
from hpctrain.plan import Samples


def count(data: schema.Data) -> Samples:
    """Count the samples of a dataset, however long that takes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        if data.dataset == "folder":
            return samples_of(data, folder_found(data, _listed))
        if data.dataset == "shards":
            return samples_of(data, shards_found(data, _indexed))
        if ":" in data.dataset:
            from hpctrain.data import user  # which needs torch

            return samples_of(data, Found(*user.count(data)))
    except DataError as error:  # nothing has been submitted yet
        raise UsageError(error.message, error.hint) from None
    return locate(data)


def _listed(root: Path) -> listing.Summary:
    return listing.load(root, Progress(f"listing {root}", "classes")).summary


def _indexed(directory: Path, pattern: str) -> index.Header:
    return index.load(directory, pattern, Progress(f"indexing {directory / pattern}", "shards")).header


def main() -> None:
    """Count what standard input names."""
    try:
        found = count(msgspec.json.decode(sys.stdin.buffer.read(), type=schema.Data))
    except HpctrainError as error:
        sys.stdout.buffer.write(msgspec.json.encode({"message": error.message, "hint": error.hint}))
        sys.exit(error.exit_code)
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()

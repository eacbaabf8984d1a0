"""The entry point of `hpctrain` and of `python -m hpctrain`."""

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    # Importing makes many objects and no garbage: looking for some takes a twentieth of a short command's time.
    gc.set_threshold(100_000)
    from hpctrain.cli import main as run

    run()


if __name__ == "__main__":
    main()

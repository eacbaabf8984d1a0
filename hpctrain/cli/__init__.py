"""The commands. Each imports what it needs inside, so that none pays for another's start.

What a machine reads goes to standard output, everything else to standard error.
Exit codes: 0 ok, 2 config or usage, 3 the cluster refused, 4 the job failed.
"""

import importlib
import sys
from typing import NoReturn

import click

from hpctrain import __version__
from hpctrain.errors import HpctrainError

_HOMES = {
    **dict.fromkeys(("check", "submit", "run", "resume", "eject"), "hpctrain.cli.starting"),
    **dict.fromkeys(("status", "why", "list", "logs", "cancel", "doctor"), "hpctrain.cli.looking"),
    **dict.fromkeys(("eval", "find-batch", "find-lr"), "hpctrain.cli.practice"),
    "pack": "hpctrain.cli.packing",
    "ckpt": "hpctrain.cli.ckpt",
    "sandbox": "hpctrain.sandbox.commands",
}
"""The module of each command: only that of the one which is typed is imported."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _HOMES:
            return None
        command: click.Command = getattr(importlib.import_module(_HOMES[cmd_name]), cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpctrain")
def cli() -> None:
    """Data-parallel training on Slurm clusters from one YAML file.

    \b
    hpctrain check config.yaml        what is wrong with it, and what it would run
    hpctrain run config.yaml          here and now, for debugging
    hpctrain submit config.yaml       on the cluster, or in the background
    """


def main() -> NoReturn:
    """Run the command line; errors of ours become one message and their exit code."""
    try:
        code = cli.main(prog_name="hpctrain", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        from hpctrain.launch import usage

        print(usage.text(error), file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("hpctrain: interrupted; what was submitted goes on, hpctrain status shows it", file=sys.stderr)
        sys.exit(130)

"""What click says of a wrong command line, in the form of our own messages: what was typed, what to type next."""

import difflib
import re

import click

from hpctrain.errors import UsageError


def text(error: click.ClickException) -> str:
    """Return what to print: our message, or the help page, which click raises where a command is missing."""
    return error.message if error.message.startswith("Usage:") else f"hpctrain: {explain(error)}"


def explain(error: click.ClickException) -> UsageError:
    """Turn an error of click's parser into ours; words that click changes from release to release are not used."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return UsageError(error.format_message())
    path = context.command_path
    if isinstance(error, click.NoSuchOption):
        meant = _meant(error.option_name, [name for part in context.command.params for name in part.opts])
        return UsageError(f"{path} has no option {error.option_name}{meant}", f"{path} --help lists them")
    unknown = re.match(r"No such command '([^']*)'", error.message)
    if unknown is not None and isinstance(context.command, click.Group):
        meant = _meant(unknown[1], context.command.list_commands(context), before=f"{path} ")
        return UsageError(f"there is no command {path} {unknown[1]}{meant}", f"{path} --help lists them")
    message = error.format_message().rstrip(".")
    usage = " ".join(context.get_usage().split())
    return UsageError(f"{message[:1].lower()}{message[1:]}", f"{usage[:1].lower()}{usage[1:]}")


def _meant(typed: str, known: list[str], before: str = "") -> str:
    near = difflib.get_close_matches(typed, known, 1)
    return f"; did you mean {before}{near[0]}?" if near else ""

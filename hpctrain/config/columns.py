"""Which column of a table is what: the rules between the names."""

from collections.abc import Iterator, Sequence

from hpctrain.config.datasets import TableArgs


def problems(args: TableArgs, names: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Say what is wrong with the roles of columns.

    Args:
        args: of the dataset.
        names: of the columns; empty as long as they are not known.

    Yields:
        The key below `data.args`, and what to say.
    """
    for key in ("columns", "categories", "leave_out"):
        given = getattr(args, key)
        for name in sorted({name for name in given if given.count(name) > 1}):
            yield key, f"{name!r} is named twice"
    for name in args.categories:
        if name in args.leave_out:
            yield "categories", f"{name!r} is left out by leave_out; name it in one of them"
    for key in ("categories", "leave_out"):
        if args.target in getattr(args, key):
            yield key, f"{args.target!r} is the target, which is no input anyway; remove it here"
    if args.task == "classification" and args.offset:
        yield "offset", "is added to numbers, and classes are names; remove it, or use task: regression"
    if names:
        yield from _unknown(args, names)


def _unknown(args: TableArgs, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for key in ("target", "categories", "leave_out"):
        given = getattr(args, key)
        for name in (given,) if isinstance(given, str) else given:
            if name not in names:
                import difflib  # only a mistake pays for it

                near = difflib.get_close_matches(name, names, 1)
                meant = f"did you mean {near[0]!r}? " if near else ""
                shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                yield key, f"there is no column {name!r}; {meant}the columns are: {shown}"
    if not set(names) - {args.target, *args.leave_out}:
        yield "leave_out", "no column is left as an input"

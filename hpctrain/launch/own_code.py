"""Is the user's own code there? Looked at without running it, in the directory of which the snapshot is taken."""

import os
from pathlib import Path

from hpctrain.config.load import Loaded
from hpctrain.config.models import LIBRARIES


def problems(loaded: Loaded) -> list[str]:
    """Return what is missing: the script of `command`, or a module or function of dataset, model or loss."""
    config = loaded.config
    if config.command is not None:
        script = script_of(config.command)
        if script is not None and not os.path.isfile(script):  # noqa: PTH113 - a Path raises where it may not look
            return [
                loaded.problem("command", f"there is no file {script} in {Path.cwd()}, which the job gets a copy of")
            ]
        return []
    named = {
        "data.dataset": "" if config.data is None else config.data.dataset,
        "model.name": "" if config.model is None else config.model.name,
        "loss": config.loss,
    }
    found = []
    for key, name in named.items():
        module, colon, function = name.partition(":")
        if key == "model.name" and colon and module in LIBRARIES:
            found += _missing_library(loaded, module)
            continue
        problem = _problem_of(module, function, elsewhere=_runs_elsewhere(loaded)) if colon else ""
        found += [loaded.problem(key, problem)] if problem else []
    return found


def _missing_library(loaded: Loaded, name: str) -> list[str]:
    import importlib.util

    if _runs_elsewhere(loaded) or importlib.util.find_spec(name) is not None:
        return []
    problem = f"{name} is not installed; python -m pip install --no-deps {name} installs it beside this torch"
    return [loaded.problem("model.name", problem)]


def script_of(command: tuple[str, ...]) -> str | None:
    """Return the script of `python [-u] script.py ...`; None where it is no such command."""
    if not os.path.basename(command[0]).startswith("python"):  # noqa: PTH119 - text in, text out
        return None
    first = next((word for word in command[1:] if word not in {"-u", "-O", "-B"}), "")
    return first if first.endswith(".py") and not first.startswith("-") else None


def _runs_elsewhere(loaded: Loaded) -> bool:
    """Say whether the job's Python may know modules that this one does not."""
    env = loaded.config.env
    return bool(env.python or env.venv or env.container or env.modules or env.setup)


def _problem_of(module: str, function: str, *, elsewhere: bool) -> str:
    stem = Path(*module.split("."))
    file = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)
    if file is not None:
        return _missing_in(file, function)
    top = Path(module.split(".", 1)[0])
    if not top.with_suffix(".py").exists() and not top.is_dir():
        import importlib.util

        if elsewhere or importlib.util.find_spec(str(top)) is not None:
            return ""
    return f"there is no module {module} in {Path.cwd()}: neither {stem}.py nor {stem}/__init__.py"


def _missing_in(file: Path, function: str) -> str:
    """Look for a name at the top of a file, without importing it."""
    import ast
    import difflib

    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        return f"{file}{line} cannot be read as Python: {error.args[0]}"
    names: set[str] = set()
    for statement in (node for top in body for node in ast.walk(top)):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
            names.add(statement.id)
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if function in names or names & {"*", "__getattr__"}:
        return ""
    near = difflib.get_close_matches(function, names, 1)
    return f"{file} has no function {function}" + (f"; did you mean {near[0]}?" if near else "")

"""Find a function of the user's own, `package.module:function`, and report what is wrong with it in his own terms."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping

from hpctrain.errors import JobError, UsageError


def find(name: str, key: str) -> Callable[..., object]:
    """Import `package.module:function`.

    Args:
        name: of the function.
        key: of the config, for messages.

    Raises:
        UsageError: the module, or what it imports, or the function is not there.
        JobError: importing the module raised.
    """
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise UsageError(
                f"{key}: there is no module {error.name!r} (looked for {path!r} on sys.path)",
                "start hpctrain in the directory that holds it, or install it into the job's Python (env.venv)",
            ) from None
        raise UsageError(
            f"{key}: {path} imports {error.name!r}, which is not installed\n{frames(error)}",
            "install it into the job's Python (env.venv)",
        ) from error
    except Exception as error:
        raise JobError(f"{key}: importing {path} raised {type(error).__name__}: {error}\n{frames(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        offered = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        said = "is no function" if hasattr(module, attribute) else "does not exist"
        raise UsageError(
            f"{key}: {attribute!r} {said} in {module.__file__ or path}",
            f"its functions are: {', '.join(offered) or 'none'}",
        )
    return function  # type: ignore[no-any-return]


def call(name: str, args: Mapping[str, object]) -> str:
    """Return a call as one would write it."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})"


def frames(error: BaseException) -> str:
    """Return the frames of the user's code: those after ours and after the import machinery."""
    own = __file__.rpartition("/")[0] + "/"
    found = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(own) and "importlib" not in frame.filename
    ]
    return "".join(traceback.format_list(found)).rstrip() or "  (it was called with arguments that it does not take)"


def where(function: Callable[..., object]) -> str:
    """Say where a function stands."""
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (TypeError, OSError):
        return repr(function)

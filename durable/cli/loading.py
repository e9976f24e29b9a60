"""Which engine a command works with: the user's own, found by ``module:name``, or a client of a database.

Operators give a database, and need none of the program's code: such a client names workflows by their names. It
changes no schema and makes no file. No command is known here.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from durable.engine import Engine
from durable.errors import ConfigurationError, InvalidArgument, without_password

P = ParamSpec("P")

_DEFAULT_NAME = "engine"
_DEFAULT_FILE = "durable.db"
_SQLITE = "sqlite:///"
_DATABASE_VARIABLES = ("DURABLE_DATABASE_URL", "DATABASE_URL")
"""As in the standalone mode, so that every command works in its container."""

EngineArgument = Annotated[
    str, typer.Argument(metavar="MODULE:ENGINE", help="Where the engine is, such as app.main:engine.")
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine", "-e", metavar="MODULE:ENGINE", envvar="DURABLE_ENGINE", help="Your engine, such as app.main:engine."
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        *("--database", "-d"),
        metavar="URL",
        envvar=list(_DATABASE_VARIABLES),
        show_default=False,
        help="Or the database alone: postgresql://… or sqlite:///file.",
    ),
]
SchemaOption = Annotated[
    str, typer.Option("--schema", metavar="NAME", envvar=["DURABLE_SCHEMA", "SCHEMA"], help="The schema in Postgres.")
]


def load_engine(target: str) -> Engine:
    """The engine that ``module:name`` names; the name may be left out when it is ``engine``.

    The working directory is where modules are looked for first. What is named may also be a function without
    parameters that returns an engine.

    Raises:
        ConfigurationError: There is no such module or name, the module fails to import, or it is no engine.
    """
    if "://" in target:
        raise ConfigurationError(f"{without_password(target)} is a database, not an engine: give it with --database")
    module_name, _, name = target.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = ".".join(Path(module_name).with_suffix("").parts)
        raise ConfigurationError(f"{module_name} is a file: name the module, such as {dotted}:{name or _DEFAULT_NAME}")
    module = _imported(module_name, target)
    found: Any = module
    for part in (name or _DEFAULT_NAME).split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(_no_name(module, module_name, name or _DEFAULT_NAME)) from None
    if not isinstance(found, Engine) and callable(found) and not inspect.isclass(found):
        found = found()
    if not isinstance(found, Engine):
        raise ConfigurationError(f"{target} is no durable.Engine, but a {type(found).__qualname__}")
    return found


def _imported(module_name: str, target: str) -> ModuleType:
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigurationError(f"{target!r} names no engine: it has the form module:name, such as app.main:engine")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_failed(module_name, error) from error
        raise ConfigurationError(f"there is no module {error.name!r} in {Path.cwd()} or on Python's path") from None
    except (Exception, SystemExit) as error:
        raise _import_failed(module_name, error) from error


def _import_failed(module_name: str, error: BaseException) -> ConfigurationError:
    """With the traceback from the user's code on: what stands above it is this module and Python's import."""
    shown = traceback.TracebackException.from_exception(error)
    shown.stack = traceback.StackSummary.from_list(
        [frame for frame in shown.stack if "importlib" not in frame.filename and frame.filename != __file__]
    )
    return ConfigurationError(without_password(f"module {module_name!r} fails to import\n\n{''.join(shown.format())}"))


def _no_name(module: ModuleType, module_name: str, name: str) -> str:
    names: dict[str, Any] = vars(module)
    engines = sorted(key for key, value in names.items() if isinstance(value, Engine))
    hint = f"; it has {', '.join(f'{module_name}:{key}' for key in engines)}" if engines else ""
    return f"module {module_name!r} has no {name!r}{hint}"


def choose_engine(target: str | None, database: str | None, schema: str = "durable", *, create: bool = False) -> Engine:
    """The user's engine, or a client of the database alone; of the default file when neither is given and it is there.

    What stands on the command line goes before what stands in the environment, and there the engine goes first.

    Args:
        create: A SQLite file that is not there is made, the default one too.

    Raises:
        ConfigurationError: None of them is to be had.
        InvalidArgument: Both are on the command line, or the URL is none.
    """
    written = database is not None and database not in map(os.environ.get, _DATABASE_VARIABLES)
    if target is not None and written:
        if target != os.environ.get("DURABLE_ENGINE"):
            raise InvalidArgument("give --engine or --database, not both: an engine has its own database")
        target = None
    if target is not None:
        return load_engine(target)
    if database is None:
        if not create and not Path(_DEFAULT_FILE).exists():
            raise ConfigurationError(
                "which database? Name your engine (--engine app.main:engine), or the database (--database URL), or set "
                "DURABLE_DATABASE_URL"
            )
        database = f"{_SQLITE}{_DEFAULT_FILE}"
    path = database.removeprefix(_SQLITE)
    if path != database and not create and not Path(path).exists():  # connecting would make an empty one
        raise ConfigurationError(f"there is no file {Path(path).absolute()}")
    if database.startswith("memory:"):
        raise InvalidArgument("memory:// is private to the process that made it: nothing is to be seen there")
    return Engine(database, schema=schema, auto_migrate=False)


def connected(command: Callable[Concatenate[Engine, P], Awaitable[None]]) -> Callable[..., None]:
    """A command of ``command``, whose first parameter is an engine that is connected as a client.

    The options that say which engine it is are added to those of ``command``.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = list(signature.parameters.values())[1:]
    for name, kind, default in (
        ("engine", EngineOption, None),
        ("database", DatabaseOption, None),
        ("schema", SchemaOption, "durable"),
    ):
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))

    @functools.wraps(command)
    def run(*args: Any, engine: str | None, database: str | None, schema: str, **options: Any) -> None:
        chosen = choose_engine(engine, database, schema)

        async def work() -> None:
            async with chosen.client():
                await command(chosen, *args, **options)

        asyncio.run(work())

    del run.__wrapped__  # its signature is not this one's
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run

"""The standalone mode: every workflow of a directory, on the database that the environment names.

It imports the user's files and makes an engine of what they define. What a file does that cannot be imported, it
reports with the user's own traceback, and nothing is started.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from durable.cli.loading import load_engine
from durable.cli.settings import Settings, read_settings
from durable.engine import Engine
from durable.errors import ConfigurationError
from durable.workflow import Workflow


def standalone_engine(settings: Settings) -> Engine:
    """The engine of the standalone mode. No I/O but reading the files.

    Raises:
        ConfigurationError: The directory is missing or defines no workflow, or a file cannot be imported.
        InvalidArgument: Two workflows have the same name and version, or the database's address is none.
    """
    return Engine(
        settings.url,
        workflows=load_directory(settings.workflows_dir),
        worker=settings.worker,
        schema=settings.schema_name,
    )


def load_directory(directory: Path) -> list[Workflow[Any, Any]]:
    """The workflows that the files of ``directory`` define, in the order of the files.

    Every ``*.py`` file and every package directly in it is imported; what begins with ``_`` or ``.`` is for the others
    to import. The directory is put at the head of the import path, so that its files can import each other.

    Raises:
        ConfigurationError: It is no directory, a file cannot be imported, or there is no workflow.
    """
    directory = directory.absolute()
    if not directory.is_dir():
        raise ConfigurationError(
            f"the directory of workflows {directory} does not exist: set WORKFLOWS_DIR, or name an engine "
            "such as app.main:engine"
        )
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    found: list[Workflow[Any, Any]] = []
    for path in _sources(directory):
        found += [value for value in vars(_imported(path)).values() if isinstance(value, Workflow)]
    if not found:
        raise ConfigurationError(f"no file in {directory} defines a workflow: decorate a function with @workflow")
    return list(dict.fromkeys(found))  # once each: a file may import a workflow of another one


def _sources(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name.startswith(("_", ".")):
            continue
        if path.suffix == ".py":
            yield path
        elif (path / "__init__.py").is_file():
            yield path / "__init__.py"


def _imported(path: Path) -> ModuleType:
    package = path.name == "__init__.py"
    name = path.parent.name if package else path.stem
    if (module := sys.modules.get(name)) is not None:
        if _file(module) == path:  # another file of the directory has imported it
            return module
        raise ConfigurationError(
            f"{path} cannot be imported as {name!r}: there is another module of this name; rename it"
        )
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)] if package else None
    )
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigurationError(f"{path} cannot be imported\n\n{_traceback(error)}") from error
    return module


def _file(module: ModuleType) -> Path | None:
    return None if getattr(module, "__file__", None) is None else Path(str(module.__file__)).absolute()


def _traceback(error: BaseException) -> str:
    """As Python shows it, from the user's own code on: how we got there helps nobody."""
    here, frames = __file__, error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in (here, "<frozen importlib._bootstrap_external>"):
        frames = frames.tb_next
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def running_engine(
    target: str | None, *, queues: Iterable[str] | None = None, concurrency: int | None = None
) -> Engine:
    """The engine that a process works for: the user's own, or that of the standalone mode.

    Args:
        target: ``module:name``; None: the standalone mode.
        queues: Instead of those of the engine's ``WorkerOptions``.
        concurrency: Likewise.

    Raises:
        ConfigurationError, InvalidArgument: It is not to be had; the message says why.
    """
    engine = standalone_engine(read_settings()) if target is None else load_engine(target)
    changes: dict[str, Any] = {"queues": queues, "concurrency": concurrency}
    engine.worker_options = engine.worker_options.replaced(**{k: v for k, v in changes.items() if v is not None})
    return engine

"""What users install: built, installed in a clean environment, and used to migrate a database."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import psycopg
import pytest

from durable.testing.postgres import PostgresServer

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("wheel")  # built once, by one test process


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive: what that lacks, the wheel lacks too."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT))
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has the wheel, and its dependencies from the present environment.

    Those come by a line in a ``.pth`` file, without a download. The present environment's own ``durable``, which
    stands in a ``.pth`` file there, does not come with them.
    """
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    interpreter = home / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(interpreter),
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
        str(wheel),
    )
    site = Path(run(str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def run(*command: str, cwd: Path | None = None) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DURABLE_DATABASE_URL")
    }
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


def test_the_wheel_holds_the_package_and_all_sql(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "durable").rglob("*.py")}
    statements = {f"durable/_sql/{path.relative_to(ROOT / 'sql')}" for path in (ROOT / "sql").rglob("*.sql")}
    assert statements
    assert package | statements | {"durable/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {
        "durable",
        *(name.split("/")[0] for name in names if ".dist-info/" in name),
    }


def test_an_installed_wheel_migrates_sqlite_and_postgres(
    python: Path, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    program = (
        "import asyncio, sys, durable\n"
        "for url in sys.argv[1:]:\n"
        "    asyncio.run(durable.Engine(url).migrate())\n"
        "print(durable.__file__)\n"
    )
    url = postgres_server.database(f"durable_wheel_{os.getpid()}")
    output = run(str(python), "-c", program, f"sqlite:///{tmp_path}/new.db", url, cwd=tmp_path)
    assert Path(output.strip()).is_relative_to(python.parents[1]), "the package did not come from the wheel"
    assert (tmp_path / "new.db").stat().st_size > 0
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'durable'").fetchone()
    assert row is not None
    assert row[0] > 0
    postgres_server.drop_database(f"durable_wheel_{os.getpid()}")


def test_the_finder_works_from_an_installed_wheel(python: Path, tmp_path: Path) -> None:
    program = "from durable.testing.postgres import find_postgres; print(find_postgres().line)"
    assert "Postgres for tests: " in run(str(python), "-c", program, cwd=tmp_path)


def test_the_wheel_brings_the_command(python: Path, tmp_path: Path) -> None:
    assert run(str(python.parent / "durable"), "--version", cwd=tmp_path).startswith("durable ")

"""The environment variables of the standalone mode, checked before anything starts.

It knows what each of them means, and neither workflows nor commands. The database's address is kept as a secret: no
repr and no error shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from durable.errors import ConfigurationError
from durable.options import WorkerOptions

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    """What the standalone mode reads from the environment. An empty variable counts as one that is not set."""

    # Case matters: PATH and path are two variables, and neither is a setting because it reads like one.
    model_config = SettingsConfigDict(
        env_ignore_empty=True, case_sensitive=True, extra="ignore", hide_input_in_errors=True, frozen=True
    )

    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("DURABLE_DATABASE_URL", "DATABASE_URL")
    )
    """Where the runs are. The name of its own goes first: platforms set ``DATABASE_URL`` to the application's."""

    schema_name: str = Field(default="durable", validation_alias="SCHEMA")
    """The Postgres schema."""

    workflows_dir: Path = Field(default=Path("workflows"), validation_alias="WORKFLOWS_DIR")
    """The directory whose files define the workflows."""

    poll_interval_ms: int = Field(default=1000, ge=1, validation_alias="POLL_INTERVAL_MS")
    """Milliseconds after which an idle worker looks for runs unasked."""

    max_concurrent: int = Field(default=100, ge=1, validation_alias="MAX_CONCURRENT")
    """Runs that one worker process executes at the same time."""

    lease_ms: int = Field(default=30_000, ge=500, validation_alias="LEASE_MS")
    """Milliseconds for which the runs of a worker that has died stay its own."""

    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(default="INFO", validation_alias="LOG_LEVEL")
    """What is logged, from this level on."""

    port: int = Field(default=8000, ge=0, le=65535, validation_alias="PORT")
    """Where ``durable serve`` and ``durable dev`` listen; 0: any free port."""

    @property
    def url(self) -> str | None:
        """The database's address with its password; None: the default SQLite file."""
        return None if self.database_url is None else self.database_url.get_secret_value()

    @property
    def worker(self) -> WorkerOptions:
        """How its workers work."""
        return WorkerOptions(
            concurrency=self.max_concurrent, lease=self.lease_ms / 1000, poll_interval=self.poll_interval_ms / 1000
        )


def read_settings() -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: A variable has a value that does not fit; the message names all of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"the environment does not fit: {wrong}") from None

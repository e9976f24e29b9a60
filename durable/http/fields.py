"""The words that documents of the HTTP runtime are made of: names, times and the like, by the engine's own rules."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from durable.durations import MAX_SECONDS
from durable.names import MAX_KEY, MAX_NAME, MAX_TAGS, check_key, check_name, check_note, check_tags

EXAMPLE_ID = "0198c5d2-7d2c-7b1e-8a53-5d4f6c1b2a90"
AT = "2026-03-01T09:30:00Z"
_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")
_PRINTABLE = r"[^\x00-\x1f\x7f-\x9f]"


def _schema(least: int, most: int, pattern: str) -> WithJsonSchema:
    """What a schema can say of a text: no pattern has words for "printable"."""
    return WithJsonSchema({"type": "string", "minLength": least, "maxLength": most, "pattern": pattern})


Name = Annotated[
    str,
    AfterValidator(lambda value: check_name(value, "name")),
    _schema(1, MAX_NAME, r"^[^#\[\]/\x00-\x1f\x7f-\x9f]+$"),
]
Key = Annotated[str, AfterValidator(lambda value: check_key(value, "key")), _schema(1, MAX_KEY, f"^{_PRINTABLE}+$")]
Note = Annotated[
    str, AfterValidator(lambda value: check_note(value, "reason")), _schema(0, MAX_KEY, f"^{_PRINTABLE}*$")
]


def _written(value: Any) -> Any:
    """Pydantic also takes numbers, for seconds or milliseconds, whichever is nearer to our days."""
    if not isinstance(value, datetime) and not _DATE.match(str(value)):
        raise ValueError(f"write a time as {AT}")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time leaves the calendar in UTC") from None


When = Annotated[
    AwareDatetime,
    BeforeValidator(_written),
    AfterValidator(_utc),
    Field(examples=[AT]),
]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Tags = Annotated[
    dict[str, str],
    AfterValidator(check_tags),
    Field(max_length=MAX_TAGS, description="For lists and filters.", examples=[{"tenant": "acme"}]),
]
Priority = Annotated[int, Field(ge=0, le=9, description="0 first, 9 last.")]


class Accepted(BaseModel):
    """A document that is read."""

    model_config = ConfigDict(extra="forbid")


def example(**values: Any) -> ConfigDict:
    """The configuration of a document with an example."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})

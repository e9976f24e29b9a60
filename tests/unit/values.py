"""Types whose values the codec tests send through JSON and back."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    computed_field,
    field_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema
from typing_extensions import TypedDict


class Line(BaseModel):
    sku: str
    price: Decimal
    count: int = 1


class Order(BaseModel):
    id: UUID
    lines: list[Line]
    placed: dt.datetime
    note: str | None = None


class RushOrder(Order):
    courier: str = "bike"


@dataclass
class Receipt:
    order: str
    total: float
    paid: bool = True
    parts: tuple[int, ...] = ()


@dataclass
class ChildReceipt(Receipt):
    extra: str = ""


@dataclass(eq=False)
class Silent:
    """Compared by identity."""

    at: dt.datetime
    inner: Receipt


@dataclass(eq=False)
class Lossy:
    """A field that the constructor changes: what comes back is something else."""

    count: int

    def __post_init__(self) -> None:
        self.count += 1


@dataclass(frozen=True, slots=True)
class Slotted:
    name: str
    at: dt.date


@dataclass
class Careless:
    """Equal to everything by its own account."""

    a: int
    b: int = field(default=0, compare=False)


@dataclass
class Photo:
    data: bytes
    mime: str = "image/png"


@dataclass
class WithInitVar:
    a: int
    scale: InitVar[int]

    def __post_init__(self, scale: int) -> None:
        self.a *= scale


@pydantic_dataclass
class Checked:
    n: int


class Color(enum.Enum):
    RED = "r"
    TWO = 2


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: str


class Options(TypedDict):
    a: int
    b: NotRequired[list[str]]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = ""


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class AliasedCat(BaseModel):
    kind: Literal["cat"] = Field(default="cat", alias="k")


class AliasedDog(BaseModel):
    kind: Literal["dog"] = Field(default="dog", alias="k")


AliasedPet = Annotated[AliasedCat | AliasedDog, Field(discriminator="kind")]


class Aliased(BaseModel):
    """Read by one name, written by another, and closed to all others: with a computed field in it."""

    model_config = ConfigDict(extra="forbid")
    amount: int = Field(validation_alias="in", serialization_alias="out")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.amount * 2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Private(BaseModel):
    a: int
    _cache: int = PrivateAttr(default=0)


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    content: T


class Numbers(RootModel[list[int]]):
    pass


class BytesModel(BaseModel):
    data: bytes


class Base64Model(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Ratio(BaseModel):
    value: float


class BareRatio(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    value: float


class SpelledRatio(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    value: float


class Shortened(RootModel[list[int]]):
    @field_serializer("root")
    def write(self, root: list[int]) -> list[int]:
        return root[:2]


@dataclass(frozen=True)
class Rounded:
    number: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", self.number * 2)


class Swapped(enum.Enum):
    BLACK = "black"
    WHITE = "white"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        return core_schema.no_info_plain_validator_function(
            lambda _: cls.WHITE, serialization=core_schema.plain_serializer_function_ser_schema(lambda one: one.value)
        )


Upper = dict[Annotated[str, AfterValidator(str.upper)], int]

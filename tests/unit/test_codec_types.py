"""Which codec a callable or an annotation gets."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

import pytest
from pydantic import (
    BaseModel,
)

from durable.codec import (
    MISSING,
    PLAIN,
    codec_for,
    input_codec,
    result_codec,
)
from durable.errors import InvalidArgument, ResultTypeUnknown
from tests.unit.values import Order, Receipt, T

WHAT = "the result of step 'x'"


def test_one_codec_per_type() -> None:
    assert codec_for(Order) is codec_for(Order)
    assert codec_for(list[Order]) is codec_for(list[Order])
    assert codec_for(Annotated[int, {"a": 1}]) is codec_for(Annotated[int, {"a": 1}])
    assert codec_for(Annotated[int, {"a": 1}]) is not codec_for(Annotated[int, {"a": 2}])
    assert codec_for(Any) is codec_for(object) is codec_for(MISSING) is PLAIN


def test_the_order_of_a_union_makes_another_codec() -> None:
    """They are equal to Python, and decode differently."""
    assert codec_for(str | dt.date) is not codec_for(dt.date | str)
    assert codec_for(list[str | dt.date]) is not codec_for(list[dt.date | str])


def test_an_unusable_type_is_plain_json_with_the_reason() -> None:
    class Unusable:
        pass

    codec = codec_for(Unusable)
    assert codec.encode({"a": 1}, WHAT) == '{"a":1}'
    with pytest.raises(ResultTypeUnknown, match="Unusable cannot be decoded"):
        codec.encode(Unusable(), WHAT)
    with pytest.raises(ResultTypeUnknown, match="type variable ~T"):
        codec_for(T).encode((1,), WHAT)


def _named(fn: Any) -> str:
    """The same in every test process: a repr would contain an address."""
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


class Payments:
    def charge(self, amount: int) -> Receipt:
        return Receipt("o", amount)

    async def refund(self, amount: int) -> Receipt:
        return Receipt("o", amount)

    @classmethod
    def of_class(cls) -> Receipt: ...  # type: ignore[empty-body]

    @staticmethod
    def static() -> Receipt: ...  # type: ignore[empty-body]


class Callme:
    def __call__(self) -> Receipt: ...  # type: ignore[empty-body]


def gives() -> Receipt: ...  # type: ignore[empty-body]


async def gives_async() -> Receipt: ...  # type: ignore[empty-body]


def gives_awaitable() -> Awaitable[Receipt]: ...  # type: ignore[empty-body]


def gives_coroutine() -> Coroutine[Any, Any, Receipt]: ...  # type: ignore[empty-body]


def gives_future() -> asyncio.Future[Receipt]: ...  # type: ignore[empty-body]


def gives_with_broken_parameter(other: Any) -> Receipt: ...  # type: ignore[empty-body]


gives_with_broken_parameter.__annotations__["other"] = "Nowhere"  # as after an import under TYPE_CHECKING


def decorated(fn: Callable[..., Any]) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


class Partial(functools.partial[Any]):
    pass


CALLABLES: list[Any] = [
    gives,
    gives_async,
    gives_awaitable,
    gives_coroutine,
    gives_future,
    gives_with_broken_parameter,
    functools.partial(gives),
    functools.partial(functools.partial(Receipt, "o"), 1),
    functools.partial(functools.partial(gives_async)),
    Payments().charge,
    Payments().refund,
    functools.partial(Payments().refund, 5),
    Payments.charge,
    Payments.of_class,
    Payments.static,
    Callme(),
    functools.partial(Callme()),
    decorated(gives),
    decorated(gives_async),
    functools.lru_cache(gives),
    Receipt,
    functools.partial(Receipt, "o"),
    Partial(gives),
]


@pytest.mark.parametrize("fn", CALLABLES, ids=_named)
def test_the_result_type_is_found_through_every_kind_of_callable(fn: Any) -> None:
    assert result_codec(fn) is result_codec(fn) is codec_for(Receipt)


UNDECLARED: list[Any] = [lambda: 1, print, len, functools.partial(print), object(), asyncio.to_thread, "x".join]


@pytest.mark.parametrize("fn", UNDECLARED, ids=_named)
def test_without_a_declared_result_values_are_plain_json(fn: Any) -> None:
    codec = result_codec(fn)
    assert codec.encode({"a": 1}, WHAT) == '{"a":1}'
    with pytest.raises(ResultTypeUnknown):
        codec.encode(Receipt("o", 1.0), WHAT)


def test_returns_wins_and_must_be_usable() -> None:
    assert result_codec(gives, Order) is codec_for(Order)
    assert result_codec(lambda: 1, None) is codec_for(None)
    assert result_codec(gives, Any) is PLAIN
    with pytest.raises(InvalidArgument, match="returns="):
        result_codec(gives, object())


def test_a_local_class_under_string_annotations_is_found_through_the_closure() -> None:
    class Local(BaseModel):
        a: int

    async def uses() -> Local:
        return Local(a=1)

    async def takes(ctx: Any, value: Local) -> None:
        assert isinstance(value, Local)
        assert unassigned is None

    def silent() -> Any:
        return None

    silent.__annotations__["return"] = "Hidden"
    assert result_codec(uses) is codec_for(Local)
    assert input_codec(takes) == (True, False, codec_for(Local))
    with pytest.raises(ResultTypeUnknown, match=r"'Hidden' cannot be evaluated.*NameError.*returns="):
        result_codec(silent).encode((1,), WHAT)
    assert result_codec(silent).encode([1], WHAT) == "[1]"
    unassigned = None  # a variable of the closure that had no value yet


def test_a_type_that_is_defined_later_is_found_at_the_first_use() -> None:
    """A workflow is decorated while its module is imported: its input may be defined below it."""
    scope: dict[str, Any] = {"__name__": "later", "BaseModel": BaseModel}
    exec("async def flow(ctx, order: 'Later') -> 'Later': ...", scope)
    _, _, codec = input_codec(scope["flow"])
    result = result_codec(scope["flow"])
    exec("class Later(BaseModel):\n    n: int", scope)
    value = scope["Later"](n=1)
    for one in (codec, result):
        text, seen = one.round_trip(value, WHAT)
        assert one.decode(text, WHAT) == seen == value


def test_a_model_that_refers_to_a_later_one_is_completed_at_the_first_use() -> None:
    scope: dict[str, Any] = {"__name__": __name__, "BaseModel": BaseModel}
    exec("class Early(BaseModel):\n    part: 'Part'\nasync def flow(ctx, order: Early): ...", scope)
    _, _, codec = input_codec(scope["flow"])
    with pytest.raises(ResultTypeUnknown, match="Early cannot be decoded"):
        codec_for(scope["Early"]).encode((1,), WHAT)
    exec("class Part(BaseModel):\n    n: int\nEarly.model_rebuild()", scope)
    value = scope["Early"](part=scope["Part"](n=1))
    assert codec.round_trip(value, WHAT)[1] == value


def test_a_function_with_a_name_that_is_never_defined_leaves_nothing_behind() -> None:
    def made() -> Any:
        def fn() -> Any: ...

        fn.__annotations__["return"] = "Nowhere"
        return fn

    fn = made()
    gone, codec = weakref.ref(fn), result_codec(fn)
    assert result_codec(fn) is codec
    assert codec.encode([1], WHAT) == "[1]"
    del fn
    gc.collect()
    assert gone() is None
    early = made()
    codec = result_codec(early)
    del early
    gc.collect()
    assert codec.encode([1], WHAT) == "[1]"


def test_an_awaitable_that_does_not_say_of_what_is_no_type() -> None:
    def bare() -> Any: ...

    bare.__annotations__["return"] = Awaitable
    with pytest.raises(ResultTypeUnknown, match="does not say what awaiting it gives"):
        result_codec(bare).encode((1,), WHAT)


def test_functions_made_for_each_call_leave_nothing_behind() -> None:
    def made(n: int) -> Any:
        def fn() -> Receipt:
            return Receipt(str(n), 1.0)

        return fn

    functions = [made(n) for n in range(100)]
    assert {result_codec(functools.partial(fn)) for fn in functions} == {codec_for(Receipt)}
    gone = [weakref.ref(fn) for fn in functions]
    del functions
    gc.collect()
    assert not any(ref() for ref in gone)


async def no_input(ctx: Any) -> None: ...


async def one_input(ctx: Any, order: Order) -> None: ...


async def defaulted(ctx: Any, order: Receipt | None = None) -> None: ...


async def untyped(ctx: Any, order: Any) -> None: ...


del untyped.__annotations__["order"]


class Holder:
    async def flow(self, ctx: Any, order: Order) -> None: ...


def test_a_workflow_function_says_what_it_takes() -> None:
    assert input_codec(no_input)[:2] == (False, False)
    assert input_codec(one_input) == (True, False, codec_for(Order))
    assert input_codec(defaulted) == (True, True, codec_for(Receipt | None))
    assert input_codec(Holder().flow) == (True, False, codec_for(Order))
    takes, has_default, codec = input_codec(untyped)
    assert (takes, has_default) == (True, False)
    assert codec.encode([1], "the input") == "[1]"
    with pytest.raises(ResultTypeUnknown, match="annotate the workflow function's input"):
        codec.encode((1,), "the input")


def no_parameters() -> None: ...
def three(ctx: Any, a: int, b: int) -> None: ...
def star(ctx: Any, *rest: int) -> None: ...
def keywords(ctx: Any, **rest: int) -> None: ...
def keyword_only(ctx: Any, *, a: int = 1) -> None: ...
def default_ctx(ctx: Any = None) -> None: ...


@pytest.mark.parametrize("fn", [no_parameters, three, star, keywords, keyword_only, default_ctx, 5])
def test_other_shapes_are_refused_with_what_is_allowed(fn: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"\(ctx\), \(ctx, input\) or \(ctx, input=default\)") as caught:
        input_codec(fn)
    assert getattr(fn, "__name__", "5") in str(caught.value)

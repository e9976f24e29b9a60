"""Every promise has a test that is named after it; ``promises.txt`` has one promise a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_PROMISES = dict(line.split(" ", 1) for line in (_HERE / "promises.txt").read_text().splitlines())
_ROOT = _HERE.parents[1]
_NAMED = re.findall(
    r"def test_(P\d\d)_",
    "\n".join(
        path.read_text()
        for folder in (_ROOT / "tests", _ROOT / "durable" / "testing" / "conformance")
        for path in folder.rglob("*.py")
    ),
)


@pytest.mark.parametrize("promise", _PROMISES)
def test_a_promise_has_a_test_with_its_name(promise: str) -> None:
    assert promise in _NAMED, _PROMISES[promise]


def test_no_test_is_named_after_a_promise_that_nobody_made() -> None:
    assert set(_NAMED) <= set(_PROMISES)

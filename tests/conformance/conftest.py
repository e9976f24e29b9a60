"""Lets the suite's asserts explain themselves; pytest rewrites only test modules on its own."""

import pytest

pytest.register_assert_rewrite("durable.testing.conformance")

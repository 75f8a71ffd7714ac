"""How often a law is tried."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

Test = TypeVar("Test", bound=Callable[..., None])

settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)  # a timing never decides a test


def law(examples: int) -> Callable[[Test], Test]:
    """Try a law on some examples, and by `make test-slow` on many more."""
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    tried = settings(
        max_examples=examples * int(os.environ.get("HABITUS_EXAMPLES", "1")), suppress_health_check=allowed
    )
    return lambda test: pytest.mark.law(tried(test))

"""What other threads do, or how busy the machine is, fails no test of properties."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def drawn_while_another_thread_draws() -> float:
    """As if a thread came in between: afterwards the process's `random` is in another state."""
    return random.random()


@given(st.builds(drawn_while_another_thread_draws))
def test_a_thread_may_use_random(drawn: float) -> None:
    assert 0 <= drawn < 1


def test_hypothesis_would_blame_the_strategy() -> None:
    """Without the filter in pyproject.toml, which `warns` suspends."""
    with pytest.warns(FutureWarning, match="Do not use the `random` module inside strategies"):
        test_a_thread_may_use_random()


def test_a_busy_machine_is_no_finding() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check

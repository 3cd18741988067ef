from app.store.redis.breaker import CircuitBreaker


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def a_breaker(clock, changes=None):
    on_change = (lambda opened: None) if changes is None else changes.append
    return CircuitBreaker(failures_to_open=3, open_s=2.0, clock_s=clock, on_change=on_change)


def fail(breaker, times):
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not():
    breaker = a_breaker(Clock())
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.allows()
    breaker.failed()
    assert breaker.is_open
    assert not breaker.allows()


def test_after_a_while_one_call_at_a_time_tries_and_its_success_closes_it():
    clock = Clock()
    changes: list[bool] = []
    breaker = a_breaker(clock, changes)
    fail(breaker, 3)
    clock.now_s = 1.9
    assert not breaker.allows()
    clock.now_s = 2.0
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()
    assert changes == [True, False]


def test_a_probe_that_fails_opens_it_for_as_long_again():
    clock = Clock()
    changes: list[bool] = []
    breaker = a_breaker(clock, changes)
    fail(breaker, 3)
    clock.now_s = 2.0
    fail(breaker, 1)
    clock.now_s = 3.9
    assert not breaker.allows()
    clock.now_s = 4.0
    assert breaker.allows()
    assert changes == [True]


def test_a_probe_that_is_given_up_lets_another_try():
    clock = Clock()
    breaker = a_breaker(clock)
    fail(breaker, 3)
    clock.now_s = 2.0
    assert breaker.allows()
    breaker.abandoned()
    assert breaker.allows()

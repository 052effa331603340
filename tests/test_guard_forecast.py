"""The forecast of a disk: how many versions still fit, and on which day it is full."""

from __future__ import annotations

from guard.checks.forecast import Forecast, Grown, forecast

DAY = 86400.0


def test_so_many_versions_fit_as_the_newest_ones_weigh() -> None:
    grown = [Grown(day * DAY, 100) for day in range(5)]
    assert forecast(room_bytes=1050, recent=grown, now=4 * DAY).forks_left == 10


def test_a_steady_home_is_full_when_its_room_is_used_up_at_its_own_rate() -> None:
    grown = [Grown(day * DAY, 100) for day in (3, 0, 1, 2, 4)]
    assert forecast(room_bytes=1000, recent=grown, now=4 * DAY).full_at == 14 * DAY


def test_a_home_that_rests_is_full_later() -> None:
    grown = [Grown(day * DAY, 100) for day in range(5)]
    busy, resting = (forecast(room_bytes=1000, recent=grown, now=now * DAY).full_at for now in (4, 40))
    assert busy is not None and resting is not None and resting - 40 * DAY > busy - 4 * DAY


def test_what_comes_at_once_is_taken_as_what_came_that_day() -> None:
    grown = [Grown(minute * 60.0, 100) for minute in range(11)]
    assert forecast(room_bytes=10_000, recent=grown, now=600.0).full_at == 600.0 + 10 * DAY


def test_what_is_not_known_is_not_told() -> None:
    assert forecast(room_bytes=1000, recent=[], now=0.0) == Forecast(0, None)
    assert forecast(room_bytes=1000, recent=[], now=0.0, guess_bytes=300) == Forecast(3, None)
    assert forecast(room_bytes=1000, recent=[Grown(0.0, 100)], now=DAY) == Forecast(10, None)
    assert forecast(room_bytes=1000, recent=[Grown(5.0, 10), Grown(6.0, 10)], now=4.0).full_at is None


def test_a_disk_below_its_reserve_is_full_now() -> None:
    grown = [Grown(0.0, 100), Grown(DAY, 100)]
    assert forecast(room_bytes=-5, recent=grown, now=DAY) == Forecast(0, DAY)

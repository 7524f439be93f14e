"""Models begin to write when what they take fits beside the others, in their order."""

from __future__ import annotations

from ollamake.disk_turns import DiskTurns, Take

ALL = ("a", "b", "c")


def turns(allowed: int, **takes: tuple[int, int]) -> DiskTurns:
    return DiskTurns(lambda: allowed, lambda name: Take(*takes.get(name, (100, 30))))


def test_all_begin_where_there_is_room_for_all() -> None:
    assert turns(300).may_write(ALL, ALL, anything_runs=False) == set(ALL)


def test_one_after_the_other_where_there_is_not() -> None:
    order = turns(170)
    assert order.may_write(ALL, ALL, anything_runs=False) == {"a"}
    assert order.may_write(("b", "c"), ALL, anything_runs=True) == {"a"}
    # What the first keeps counts: 30 + 100 + 100 is too much for two more at once.
    assert order.may_write(("b", "c"), ("b", "c"), anything_runs=False) == {"b"}
    assert order.may_write(("c",), ("c",), anything_runs=False) == {"c"}


def test_a_later_model_does_not_overtake_one_that_has_no_room() -> None:
    order = turns(150, b=(90, 0), c=(10, 0))
    assert order.may_write(ALL, ALL, anything_runs=False) == {"a"}


def test_a_model_that_fits_nowhere_begins_when_it_is_alone() -> None:
    order = turns(50)
    assert order.may_write(ALL, ALL, anything_runs=True) == set()
    assert order.may_write(ALL, ALL, anything_runs=False) == {"a"}


def test_what_was_removed_beyond_what_was_added_makes_no_room() -> None:
    """A model of which intermediate files of an earlier run go leaves less than it found: the bound is not raised by it."""
    order = turns(150, a=(100, -80))
    assert order.may_write(ALL, ALL, anything_runs=False) == {"a"}
    assert order.may_write(("b", "c"), ("b", "c"), anything_runs=False) == {"b"}


def test_one_whose_jobs_failed_does_not_hold_up_the_others_for_ever() -> None:
    order = turns(150)
    assert order.may_write(ALL, ALL, anything_runs=False) == {"a"}
    # Its jobs are still to be done, but none of them can be.
    assert order.may_write(("b",), ALL, anything_runs=False) == {"a"}
    assert order.begin_anyway("b") == {"a", "b"}
    # What it takes is counted from then on.
    assert order.may_write(("c",), ALL, anything_runs=True) == {"a", "b"}


def test_room_and_needs_are_asked_once() -> None:
    asked: list[str] = []

    def take(name: str) -> Take:
        asked.append(name)
        return Take(10, 1)

    def allowed() -> int:
        asked.append("room")
        return 100

    order = DiskTurns(allowed, take)
    for _ in range(3):
        order.may_write(ALL, ALL, anything_runs=True)
    assert asked == ["room", *ALL]

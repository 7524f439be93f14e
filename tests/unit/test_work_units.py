"""Tests that share what is expensive go to one process, and everything is handed out in an order that suits."""

import pytest
from work_units import position, unit_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tests/unit/test_a.py::test_x[1]", "tests/unit/test_a.py::test_y"),
        ("tests/dag/test_reruns.py::test_code[quantize]", "tests/dag/test_reruns_of_registration.py::test_code_of_x"),
        ("tests/faults/test_a.py::test_x", "tests/faults/test_b.py::test_x"),
        ("tests/e2e/test_demo.py::test_answers[store]", "tests/e2e/test_demo.py::test_tokenizes[store-a text]"),
        ("tests/e2e/test_kills.py::test_x[the real 0.17.4]", "tests/e2e/test_kills.py::test_y[look-the real 0.17.4]"),
    ],
)
def test_together(one: str, other: str) -> None:
    assert unit_of(one) == unit_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tests/unit/test_a.py::test_x", "tests/unit/test_b.py::test_x"),
        ("tests/dag/test_reruns.py::test_nothing", "tests/dag/test_reruns.py::test_a_parameter"),
        ("tests/e2e/test_demo.py::test_answers[store]", "tests/e2e/test_demo.py::test_answers[server]"),
        ("tests/e2e/test_kills.py::test_x[the real 0.17.4]", "tests/e2e/test_kills.py::test_x[a stand-in for 0.33]"),
    ],
)
def test_apart(one: str, other: str) -> None:
    assert unit_of(one) != unit_of(other)


def test_order() -> None:
    expected = [
        "tests/unit/test_c.py::test_x",
        "tests/unit/test_a.py::test_x[store]",
        "tests/dag/test_a.py::test_x",
        "tests/faults/test_a.py::test_x",
        "tests/e2e/test_x.py::test_x",
        "tests/e2e/test_demo.py::test_x[store]",
        "tests/e2e/test_b.py::test_x[the real 0.17.4]",
    ]
    assert sorted(expected, key=position) == expected
    assert sorted([*expected[2:], *expected[:2]], key=position) == expected
    assert sorted([*expected[1::-1], *expected[2:]], key=position) == [expected[1], expected[0], *expected[2:]]

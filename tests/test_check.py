"""Claims fail when they should, and exercises tell right from wrong."""

import math

import pytest

from trtkit import check


def test_claim_that_holds_says_value_and_bound(capsys):
    check.claim("loss", 0.4, at_most=1, unit="points")
    assert capsys.readouterr().out == "holds  loss: 0.4 points  (claimed <= 1)\n"


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(1.01, {"at_most": 1}), (0.99, {"at_least": 1}), (math.nan, {"at_most": 1}), (math.inf, {"at_least": 0})],
)
def test_claim_that_does_not_hold_raises(value, bounds):
    with pytest.raises(AssertionError, match="FAILS  x"):
        check.claim("x", value, **bounds)


def test_claim_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="must be able to fail"):
        check.claim("x", 1.0)


@pytest.mark.parametrize("name", sorted(check.EXERCISES))
def test_exercise_takes_the_reference_and_refuses_stub_and_constant(name):
    reference, cases, hint = check.EXERCISES[name]
    check.exercise(name, reference)
    assert len(cases) >= 2 and hint
    with pytest.raises(AssertionError, match="Hint"):
        check.exercise(name, lambda *args: None)
    constant = reference(*cases[0])
    with pytest.raises(AssertionError, match="expected"):
        check.exercise(name, lambda *args: constant)


def test_unknown_exercise_lists_those_there_are():
    with pytest.raises(ValueError, match="setup_images_per_s"):
        check.exercise("nope", lambda: 1)


def test_table_aligns_columns():
    text = check.table([{"a": "1", "long": "x"}, {"a": "22", "long": "yy"}], "caption")
    assert text.splitlines() == ["a   long", "--  ----", "1   x", "22  yy", "caption"]

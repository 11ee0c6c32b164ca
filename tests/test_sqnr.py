"""Closed forms against published optima, numerical integration, and brute force on samples."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats

from trtkit import quant, sqnr

DENSITY = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=1 / np.sqrt(2)),
    "uniform": stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)),
}
# Least mean squared error over thresholds, on a grid of two million quantiles of each distribution.
PUBLISHED = {
    "gaussian": {2: (1.224, 7.21), 3: (1.952, 13.29), 4: (2.474, 18.90), 5: (2.899, 24.33), 6: (3.270, 29.71),
                 8: (3.920, 40.55)},
    "laplace": {2: (1.414, 5.78), 3: (2.465, 10.80), 4: (3.408, 15.62), 5: (4.312, 20.42), 6: (5.203, 25.26),
                8: (6.985, 35.21)},
}
ROWS = [(name, bits, *row) for name, table in PUBLISHED.items() for bits, row in table.items()]
BITS = range(2, 9)


@pytest.mark.parametrize(("name", "bits", "amax", "db"), ROWS)
def test_optima_are_the_published_ones(name, bits, amax, db):
    assert sqnr.optimal_amax(name, bits) == pytest.approx(amax, abs=0.02 if name == "gaussian" else 0.05)
    assert sqnr.expected_sqnr_db(name, bits) == pytest.approx(db, abs=0.05)


@pytest.mark.parametrize("bits", BITS)
def test_uniform_has_its_own_formula(bits):
    """2q+1 equal cells fill the range: 20 log10(2q+1), 48.13 dB at 8 bits, with the last code half a step inside."""
    q = 2 ** (bits - 1) - 1
    assert sqnr.optimal_amax("uniform", bits) == pytest.approx(np.sqrt(3) * q / (q + 0.5), abs=1e-4)
    assert sqnr.expected_sqnr_db("uniform", bits) == pytest.approx(20 * np.log10(2 * q + 1), abs=1e-6)


@pytest.mark.parametrize("name", DENSITY)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mean_squared_error_is_the_integral(name, bits):
    """scipy integrates (x - x')^2 p(x) between the decisions, with a rounding of its own."""
    q = 2 ** (bits - 1) - 1
    for amax in (0.7, 1.5, 4.0):
        step = amax / q
        edges = sorted([0, *((np.arange(1, q + 1) - 0.5) * step), np.sqrt(3), 40.0])

        def density_of_error(x, step=step):
            return (x - min(round(x / step), q) * step) ** 2 * DENSITY[name].pdf(x)

        total = sum(integrate.quad(density_of_error, a, b)[0] for a, b in pairwise(edges))
        assert sqnr.expected_mse(name, bits, amax) == pytest.approx(2 * total, rel=1e-6)


@pytest.mark.parametrize("name", DENSITY)
@pytest.mark.parametrize("bits", BITS)
def test_no_other_threshold_is_better(name, bits):
    others = np.linspace(0.1, 12, 3000)
    assert sqnr.expected_mse(name, bits, sqnr.optimal_amax(name, bits)) <= sqnr.expected_mse(name, bits, others).min()


@pytest.mark.parametrize("name", DENSITY)
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("amax", [1.0, 3.0, 8.0])
def test_a_sample_shows_what_the_formula_says(name, bits, amax):
    x = DENSITY[name].ppf((np.arange(500_000) + 0.5) / 500_000).astype(np.float32)
    x /= x.std()
    measured = quant.sqnr_db(x, quant.fake_quantize(x, quant.symmetric_qparams(amax, bits=bits)))
    assert measured == pytest.approx(sqnr.expected_sqnr_db(name, bits, amax), abs=0.1)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_brute_force_on_a_random_sample_lands_near_the_optimum(name, rng):
    """The optimum of a sample is not the population's, but the latter must be nearly as good on it."""
    x = DENSITY[name].rvs(50_000, random_state=rng).astype(np.float32)
    best = sqnr.optimal_amax(name, 8)

    def db(amax):
        return quant.sqnr_db(x, quant.fake_quantize(x, quant.symmetric_qparams(amax)))

    brute = [db(a) for a in np.linspace(0.7, 1.3, 61) * best]
    assert db(best) == pytest.approx(max(brute), abs=0.1)
    assert max(brute) - brute[0] > 0.5 and max(brute) - brute[-1] > 0.5        # the search had something to find


def test_a_bit_is_worth_six_decibels_only_where_nothing_clips():
    ideal = 20 * np.log10(np.array([31, 63]) / [15, 31])                # 6.3 and 6.2 dB, towards 6.02
    gaussian, laplace = (
        np.diff([sqnr.expected_sqnr_db(name, bits, 6.0) for bits in (5, 6, 7)]) for name in ("gaussian", "laplace")
    )
    np.testing.assert_allclose(gaussian, ideal, atol=0.01)
    assert laplace[1] < ideal[1] - 0.5                         # 0.02 % of its values lie beyond 6 sigma


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sqnr.optimal_amax("cauchy", 8), "cauchy"),
        (lambda: sqnr.optimal_amax("gaussian", 1), "bits: got 1"),
        (lambda: sqnr.optimal_amax("gaussian", 9), "bits: got 9"),
        (lambda: sqnr.expected_sqnr_db("gaussian", 7.5), "bits: got 7.5"),
        (lambda: sqnr.expected_sqnr_db("gaussian", 8, 0.0), "amax: got 0"),
        (lambda: sqnr.expected_sqnr_db("gaussian", 8, np.nan), "amax: got nan"),
        (lambda: sqnr.expected_mse("gaussian", 8, np.array([1.0, -1.0])), "amax"),
    ],
)
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()

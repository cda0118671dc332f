"""pass@k is what drawing k samples gives, and the interval of pass@1 holds the truth as often as it says."""

import random
from fractions import Fraction
from itertools import combinations, pairwise
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.evaluate.pass_at_k import Count, mean_pass_at, pass_at, pass_at_1, t_quantile, wilson

counts = st.integers(1, 40).flatmap(lambda n: st.builds(Count, st.just(n), st.integers(0, n)))
many = st.lists(counts, min_size=1, max_size=30)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one(samples):
    for right in range(samples + 1):
        for k in range(1, samples + 1):
            draws = list(combinations([True] * right + [False] * (samples - right), k))
            assert pass_at(k, samples, right) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_exact_for_numbers_of_samples_whose_binomials_overflow():
    wrong, samples, k = 1900, 2000, 1000
    exact = Fraction(1)
    for i in range(k):
        exact *= Fraction(wrong - i, samples - i)
    assert pass_at(k, samples, samples - wrong) == pytest.approx(float(1 - exact), abs=1e-12)
    assert pass_at(1, 10**6, 1) == pytest.approx(1e-6, rel=1e-6)


@given(counts)
def test_more_draws_and_more_right_samples_never_lower_pass_at_k(count):
    values = [pass_at(k, *count) for k in range(1, count.samples + 1)]
    assert values[0] == pytest.approx(count.right / count.samples)
    assert all(0 <= a <= b + 1e-12 <= 1 + 1e-9 for a, b in pairwise(values))
    assert values[-1] == float(count.right > 0)


@given(many, st.floats(0.5, 0.999))
def test_the_interval_holds_the_mean_stays_within_0_and_1_and_is_never_empty(counts, confidence):
    estimate = pass_at_1(counts, confidence)
    assert estimate.mean == pytest.approx(sum(c.right / c.samples for c in counts) / len(counts))
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.high - estimate.low > 0
    assert estimate.mean == pytest.approx(mean_pass_at(1, counts))


@given(many)
def test_an_interval_of_more_confidence_is_wider(counts):
    narrow, wide = pass_at_1(counts, 0.8), pass_at_1(counts, 0.95)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@pytest.mark.parametrize("right", [0, 1, 7, 20])
def test_with_one_sample_of_each_problem_it_is_wilsons_interval(right):
    n, z = 20, NormalDist().inv_cdf(0.975)
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    estimate = pass_at_1([Count(1, int(i < right)) for i in range(n)])
    assert estimate == pytest.approx((p, max(0, middle - half), min(1, middle + half)), abs=1e-12)


def test_samples_that_always_agree_count_as_one_and_independent_ones_for_themselves():
    agreeing = [Count(50, 50 * (i % 2)) for i in range(100)]
    once = pass_at_1([Count(1, i % 2) for i in range(100)])
    assert pass_at_1(agreeing).low == pytest.approx(once.low, abs=0.002)  # t instead of the normal quantile
    rng = random.Random(1)
    independent = [Count(50, sum(rng.random() < 0.5 for _ in range(50))) for _ in range(100)]
    width = wilson(0.5, 5000, 1.96)[1] - wilson(0.5, 5000, 1.96)[0]
    estimate = pass_at_1(independent)
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.25)


@pytest.mark.parametrize("samples", [1, 16])
def test_all_right_does_not_mean_that_all_ever_will_be(samples):
    estimate = pass_at_1([Count(samples, samples)] * 20)
    assert (estimate.mean, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(wilson(1, 20, NormalDist().inv_cdf(0.975))[0])
    assert 0.8 < estimate.low < 0.9
    assert pass_at_1([Count(samples, 0)] * 20) == pytest.approx((0, 0, 1 - estimate.low))


@pytest.mark.parametrize(
    ("problems", "samples", "a", "b"), [(30, 1, 2, 2), (30, 8, 0.5, 0.5), (30, 8, 8, 2), (10, 4, 2, 2), (200, 4, 0.05, 0.05)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(problems, samples, a, b):
    rng = random.Random(f"{problems} {samples} {a}")
    hits, trials = 0, 400
    for _ in range(trials):
        difficulty = [rng.betavariate(a, b) for _ in range(problems)]
        drawn = [Count(samples, sum(rng.random() < p for _ in range(samples))) for p in difficulty]
        estimate = pass_at_1(drawn, 0.9)
        hits += estimate.low <= a / (a + b) <= estimate.high
    assert 0.85 <= hits / trials <= 0.98


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 5, 2.57058), (0.995, 10, 3.16927), (0.975, 1000, 1.96234)],
)
def test_quantiles_of_t_are_those_of_the_tables(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-5)


def test_a_row_without_an_answer_is_refused():
    for call in (lambda: pass_at_1([]), lambda: mean_pass_at(1, []), lambda: pass_at_1([Count(0, 0)])):
        with pytest.raises(ValueError, match=r"give .*at least one"):
            call()
    for k, right in ((0, 1), (4, 1), (1, 4), (1, -1)):
        with pytest.raises(ValueError, match=r"k should be 1…3"):
            pass_at(k, 3, right)
    with pytest.raises(ValueError, match="between 0 and 1"):
        pass_at_1([Count(1, 1)], 1.0)

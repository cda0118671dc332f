"""The rate of right answers: pass@1 with a confidence interval, and pass@k.

A task has problems, and each problem has samples. The samples of one problem are not independent draws, because problems
differ in difficulty. The problem is therefore the unit: pass@1 is the mean over problems of the share of right samples, and
its standard error is that of this mean, the standard deviation of the shares over √problems.

The interval is Wilson's score interval of that mean at the effective number of samples: the number of independent samples
with the same standard error, mean · (1 − mean) / error². This number is at least the number of problems, its value if the
samples of a problem always agree or if each problem has one sample; the result is then the plain Wilson interval. It is
at most the number of samples, its value if all problems have the same difficulty. The error is an estimate; if
problems have several samples, the quantile is therefore that of Student's t at problems − 1 degrees of freedom, otherwise
the normal one. If all shares are equal, for example if every sample is right, their variance carries no information; the
result is then the plain Wilson interval for the number of problems. The interval stays inside 0…1 and its width is never 0.

The interval is for the mean over all problems of this kind, of which those of the task are a sample. Wilson (1927); for
samples in clusters, Franco et al. (2019), "Comparative study of confidence intervals for proportions in complex sample
surveys".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance
from typing import NamedTuple


class Count(NamedTuple):
    """The number of a problem's samples, and the number of right ones."""

    samples: int
    right: int


class Estimate(NamedTuple):
    """pass@1 and its confidence interval."""

    mean: float
    low: float
    high: float


def pass_at(k: int, samples: int, right: int) -> float:
    """The probability that at least one of k samples of a problem, drawn without replacement, is right: the unbiased
    estimate of pass@k (Chen et al. 2021, eq. 1), computed as a product that cannot overflow.

    Raises:
        ValueError: k is not in 1…samples, or right is not in 0…samples.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(
            f"pass@{k} of {right} right among {samples} samples; k should be 1…{samples}, and right 0…{samples}"
        )
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - right + 1, samples + 1))


def mean_pass_at(k: int, counts: Sequence[Count]) -> float:
    """pass@k: the mean over problems.

    Raises:
        ValueError: there are no problems, or one has fewer than k samples.
    """
    _check(counts)
    return fmean(pass_at(k, count.samples, count.right) for count in counts)


def pass_at_1(counts: Sequence[Count], confidence: float = 0.95) -> Estimate:
    """pass@1 and an interval that contains the true value with probability `confidence`; see the module docstring.

    Raises:
        ValueError: there are no problems, one has no samples, or confidence is not between 0 and 1.
    """
    _check(counts)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it should be between 0 and 1, such as 0.95")
    problems, samples = len(counts), sum(count.samples for count in counts)
    shares = [count.right / count.samples for count in counts]
    mean = fmean(shares)
    spread = variance(shares) / problems if problems > 1 else 0.0
    number = float(problems)
    if spread:
        number = min(max(mean * (1 - mean) / spread, problems), samples)
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    if spread and samples > problems:
        quantile = t_quantile((1 + confidence) / 2, problems - 1)
    return Estimate(mean, *wilson(mean, number, quantile))


def wilson(mean: float, number: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share observed in `number` independent samples; the number may be fractional."""
    square = quantile * quantile / number
    middle = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * (mean * (1 - mean) + square / 4)) / (1 + square)
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a probability of at least ½, by bisection of its distribution function. For an integer
    number of degrees of freedom that function is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    """P(T ≤ t)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * i / (i + 1)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + inside) / 2


def _check(counts: Sequence[Count]) -> None:
    if not counts:
        raise ValueError("there are no problems; give at least one")
    if any(count.samples < 1 for count in counts):
        raise ValueError("a problem has no samples; give each at least one")

"""Figures of the tests have few points per inch, which saves time."""

from tessy_jax.analyze import charts

charts.DPI = 40

"""Pictures of the tests are small: nothing depends on how many points an inch has, but time does."""

from tessy_jax.analyze import charts

charts.DPI = 40

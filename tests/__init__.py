"""Tests of m32net, for trial; ``make test`` runs them all."""

from hypothesis import settings

# A slow machine is no failure: what is slow is measured by benchmarks, not by tests.
settings.register_profile("m32net", deadline=None)
settings.load_profile("m32net")

"""Figures of the product on this machine: ``python -m benchmarks`` (``make bench``).

Ratios are taken between things run side by side, in turn, in one run; nothing here is a test.
"""

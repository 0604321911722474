"""Measurements. Only ratios taken in one run count: machines are noisy.

`walk` measures no time: its figures are the same in each run.
"""

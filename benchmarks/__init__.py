"""Measurements. Only ratios taken in one run count: machines are noisy."""

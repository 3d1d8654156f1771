"""Measurements. Each prints ratios within one run: the machines are shared and noisy."""

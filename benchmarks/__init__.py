"""Benchmarks. Each prints ratios within one run, because the machines are shared and noisy."""

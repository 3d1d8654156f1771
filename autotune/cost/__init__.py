"""Analytical cost model: predicts step time and peak memory of layouts."""

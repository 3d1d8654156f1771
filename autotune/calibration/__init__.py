"""Fitting the cost model's constants to recorded or measured runs."""

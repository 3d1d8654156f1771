"""Recorded runs, and constants fitted to them."""

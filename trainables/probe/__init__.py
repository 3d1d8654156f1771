"""Measures devices and their network alone, without a training step: curves over sizes."""

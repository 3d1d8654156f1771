"""Trials of a training command of the user's own.

Importing this package imports neither torch nor DeepSpeed.
"""

"""The commands, one per module. `python -m autotune.NAME` and `autotune NAME` are the same."""

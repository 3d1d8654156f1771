"""The command lines. `python -m autotune.NAME` and `autotune NAME` run the same command."""

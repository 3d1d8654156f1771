"""Find the parallel layout that trains a language model fastest on the nodes you have."""

__version__ = "0.1.0"

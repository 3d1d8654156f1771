"""One module per search space; each has a function `space()` that returns a SearchSpace."""

"""Search spaces, one module each, with a function `space()` that returns a SearchSpace."""

"""A trial: what is run, what comes back, and its figures."""

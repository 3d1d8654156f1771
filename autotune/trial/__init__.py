"""A trial: its specification, its reports, and the figures measured from them."""

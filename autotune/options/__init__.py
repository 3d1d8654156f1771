"""Options of the command line, and their conversion to a request."""

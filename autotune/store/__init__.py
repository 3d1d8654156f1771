"""The run directory: its files and tables."""

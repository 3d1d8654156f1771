"""What a trial runs: one protocol, several implementations."""

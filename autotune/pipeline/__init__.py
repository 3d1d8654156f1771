"""What each pipeline stage does when in a step, predicted or measured."""

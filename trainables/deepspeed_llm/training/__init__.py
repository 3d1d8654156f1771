"""Training of a layout from the first step to the last: the same engine and step as a trial's."""

"""What a layout will need and how long its step will take, from first principles."""

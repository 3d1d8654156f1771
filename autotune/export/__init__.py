"""What other programs read: the best layout, ready to be trained."""

from autotune.export.deepspeed import export_layout

__all__ = ["export_layout"]

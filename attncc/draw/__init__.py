"""Pictures of an attention as SVG: the mask with its tile classes, and the schedule's roles over time."""

from attncc.draw.picture import draw

__all__ = ["draw"]

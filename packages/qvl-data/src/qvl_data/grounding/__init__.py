"""Grounding: boxes, points and polygons as text and back, in the frames and spaces they come in."""

from .check import check
from .shapes import area, clip, stored, upright, xywh, xyxy
from .text import LAYOUTS, SPACES, Space, as_text, coord_space, entries, parse, render, space_of, states_coordinates

__all__ = [
    "LAYOUTS",
    "SPACES",
    "Space",
    "area",
    "as_text",
    "check",
    "clip",
    "coord_space",
    "entries",
    "parse",
    "render",
    "space_of",
    "states_coordinates",
    "stored",
    "upright",
    "xywh",
    "xyxy",
]

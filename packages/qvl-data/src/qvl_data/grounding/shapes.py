"""Boxes, points and polygons as numbers: conversion, area, clipping, and EXIF orientations.

Coordinates are continuous: a picture spans 0..width and 0..height, and its pixel (i, j) covers i..i+1 and j..j+1. A box
is x1, y1, x2, y2; a polygon is x1, y1, x2, y2, x3, y3, ...
"""

from collections.abc import Callable, Sequence

from ..sample import Region

Coordinates = tuple[float, ...]

_FAR = 1e12  # further out a coordinate is only a direction; keeps the arithmetic finite


def xyxy(box: Sequence[float]) -> Coordinates:
    """x, y, width, height (COCO) as x1, y1, x2, y2."""
    x, y, width, height = box
    return x, y, x + width, y + height


def xywh(box: Sequence[float]) -> Coordinates:
    """x1, y1, x2, y2 as x, y, width, height (COCO)."""
    x1, y1, x2, y2 = box
    return x1, y1, x2 - x1, y2 - y1


def area(region: Region) -> float:
    """Square pixels of a box or a simple polygon; 0 for a point."""
    if region.kind == "point":
        return 0.0
    if region.kind == "box":
        _, _, width, height = xywh(region.xy)
        return width * height
    points = _pairs(region.xy)
    x0, y0 = points[0]
    sides = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) for (x1, y1), (x2, y2) in sides)) / 2


def clip(region: Region, width: float, height: float) -> Region | None:
    """What of a region lies in a picture of width x height; None if that is nothing (or has no area).

    Polygons: Sutherland and Hodgman 1974; parts of a concave polygon may stay joined along the border.
    """
    if region.kind == "point":
        x, y = region.xy
        return region if 0 <= x <= width and 0 <= y <= height else None
    if region.kind == "box":
        x1, y1, x2, y2 = region.xy
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        return region.model_copy(update={"xy": inside}) if inside[0] < inside[2] and inside[1] < inside[3] else None
    points = [(min(max(x, -_FAR), _FAR), min(max(y, -_FAR), _FAR)) for x, y in _pairs(region.xy)]
    for axis, bound, sign in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        points = _beyond(points, axis, bound, sign)
    if len(points) < 3:
        return None
    inside_polygon = region.model_copy(update={"xy": tuple(value for point in points for value in point)})
    return inside_polygon if area(inside_polygon) > 0 else None


def upright(xy: Sequence[float], orientation: int, width: float, height: float) -> Coordinates:
    """Coordinates of the stored picture (width x height as stored) in the upright picture.

    orientation  EXIF tag 0x0112, 1..8; from 5 on, the upright picture is height x width
    xy           4 numbers are a box, whose corners are put in order; any other even count are points
    """
    return _moved(xy, _UPRIGHT[orientation], width, height)


def stored(xy: Sequence[float], orientation: int, width: float, height: float) -> Coordinates:
    """The way back from `upright`; width x height is again the stored picture."""
    if orientation >= 5:
        width, height = height, width
    back = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
    return _moved(xy, _UPRIGHT[back], width, height)


_UPRIGHT: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    1: lambda x, y, width, height: (x, y),
    2: lambda x, y, width, height: (width - x, y),
    3: lambda x, y, width, height: (width - x, height - y),
    4: lambda x, y, width, height: (x, height - y),
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}


def _moved(
    xy: Sequence[float],
    move: Callable[[float, float, float, float], tuple[float, float]],
    width: float,
    height: float,
) -> Coordinates:
    points = [move(x, y, width, height) for x, y in _pairs(xy)]
    if len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [(min(x1, x2), min(y1, y2)), (max(x1, x2), max(y1, y2))]
    return tuple(value for point in points for value in point)


def _pairs(xy: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(xy[::2], xy[1::2], strict=True))


def _beyond(points: list[tuple[float, float]], axis: int, bound: float, sign: int) -> list[tuple[float, float]]:
    """The part of a polygon where sign * (coordinate - bound) >= 0."""
    kept: list[tuple[float, float]] = []
    for start, end in zip(points[-1:] + points[:-1], points, strict=True):
        before, after = sign * (start[axis] - bound), sign * (end[axis] - bound)
        if (before >= 0) != (after >= 0):
            part = before / (before - after)
            other = start[1 - axis] + part * (end[1 - axis] - start[1 - axis])
            kept.append((bound, other) if axis == 0 else (other, bound))
        if after >= 0:
            kept.append(end)
    return kept

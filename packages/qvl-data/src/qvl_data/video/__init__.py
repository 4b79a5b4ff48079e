"""Video files: what their headers say, and single frames of them, exactly, through PyAV (the extra `video`).

    header = probe(file, "clip.mp4")                          # frames, rate, size; nothing is decoded
    pixels = decode(file, "clip.mp4", header, [0, 15, 30])    # (3, H, W, 3), upright

A frame is named by its number in the order of showing, and its time is number / fps, as in transformers: time stamps
in the file, which may be broken or uneven, decide nothing. Known containers only, recognised by their first bytes and
never by name; playlists, which could name other files or addresses, are none of them. Colours are converted as FFmpeg
does it by default; pixels that are not square are not stretched.
"""

from .frames import decode
from .header import Header, cut, probe

__all__ = ["Header", "cut", "decode", "probe"]

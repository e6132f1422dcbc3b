"""Frames of a video by time, decoded only as far as needed."""

import math
from bisect import bisect_right
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mla_cli.data.containers import SEEK_MARGIN, decode_from, is_late, open_stream, origin_of, refuse_frame, seek, timed
from mla_cli.data.images import fit_picture
from mla_cli.data.references import BadMedia, Box, Source
from mla_cli.specs import VideoSpec

MAX_PACKETS = 2**21  # looked at in one clip, to find its end and its key frames
MAX_KEPT_BYTES = 2**24  # of packets between looking at a clip and decoding it; a longer one is opened twice
TIME_TOLERANCE = 0.001  # seconds; FLV and Matroska round time stamps to milliseconds


def frame_times(start: float, end: float, fps: float, frames: int) -> list[float]:
    """Times of a clip's frames, in seconds: of the times start + i / fps before `end`, `frames` at equal strides.

    With n such times, the k-th is number floor(k n / frames), beginning with the first. A clip with fewer than `frames`
    of them gives them all, so the result may be shorter than `frames`, but never empty.

    >>> frame_times(0.0, 10.0, fps=1.0, frames=3)
    [0.0, 3.0, 6.0]
    >>> frame_times(2.0, 3.9, fps=1.0, frames=3)
    [2.0, 3.0]
    """
    available = max(1, math.ceil((end - TIME_TOLERANCE - start) * fps))
    count = min(available, frames)
    return [start + (k * available // count) / fps for k in range(count)]


@dataclass
class _Packets:
    """What a scan saw: times of the key frames and the clip's end, in seconds; all packets, where they are few."""

    keys: list[float]
    end: float
    kept: Iterator[Any] | None


def _scan_packets(container: Any, stream: Any, start: float, end: float | None) -> _Packets:
    """Find the key frames and the clip's end (at most `end`) without decoding anything.

    The declared duration is not used: it is missing, estimated or wrong in too many files.
    """
    keys: list[float] = []
    kept: list[Any] = []
    last, size, stop = -math.inf, 0, None
    origin, tick = origin_of(container), float(stream.time_base)
    frame_length = float(1 / stream.average_rate) if stream.average_rate else 0.0
    if start > SEEK_MARGIN:
        seek(container, stream, start - SEEK_MARGIN)
    demuxed = container.demux(stream)
    for count, packet in enumerate(demuxed):
        if count >= MAX_PACKETS:
            raise BadMedia("undecodable", f"more than {MAX_PACKETS:,} packets; cut the clip")
        size += packet.size
        if size <= MAX_KEPT_BYTES:
            kept.append(packet)
        if end is not None and packet.dts is not None and packet.dts * tick - origin >= end:
            stop = end  # decoding order runs ahead of showing order, so nothing earlier follows
            break
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            continue
        seconds = stamp * tick - origin
        last = max(last, seconds + (packet.duration * tick if packet.duration else frame_length))
        if packet.is_keyframe:
            keys.append(seconds)
    if stop is None:
        stop = last if end is None else min(last, end)
    return _Packets(sorted(keys), stop, chain(kept, demuxed) if size <= MAX_KEPT_BYTES else None)


def _decode_kept(container: Any, packets: _Packets, start: float) -> Generator[tuple[float, Any], None, None] | None:
    """As `decode_from`, from the packets of a scan: no second opening. None where they cannot be used."""
    if packets.kept is None:
        return None
    decoded = (frame for packet in packets.kept for frame in packet.decode())
    frame = next(decoded, None)
    if start > SEEK_MARGIN and is_late(frame, origin_of(container), start):
        return None
    return (item for item in timed(() if frame is None else chain((frame,), decoded), origin_of(container)))


def decode_video(
    source: Source, spec: VideoSpec, start: float | None = None, end: float | None = None, box: Box | None = None
) -> tuple[np.ndarray, int]:
    """Frames of a clip by time: uint8 (frames, 3, size, size) and how many of them are real.

    The picture at time t (`frame_times`) is the last frame whose time stamp is <= t (within a millisecond), the clip's
    first frame where there is none. A clip too short for `frames` pictures repeats its last one. Decoding goes from key
    frame to wanted frame and no further. Raises `BadMedia`: no_video_stream, too_short (no frame at all), undecodable.
    """
    begin = start or 0.0
    pictures: list[np.ndarray] = []
    last = None
    with open_stream(source, "video") as (container, stream):
        packets = _scan_packets(container, stream, begin, end)
        if packets.end <= begin:
            raise BadMedia("too_short", f"there is no frame after {begin:g} s")
        times = frame_times(begin, packets.end, spec.fps, spec.frames)
        decoded = _decode_kept(container, packets, times[0])
        for frame in _frames_at(source, packets.keys, times, decoded):
            if frame is not last:  # two times can show one frame
                last, pixels = frame, fit_picture(frame.to_image(), spec.size, spec.fit, box)
            pictures.append(pixels)
    valid = len(pictures)
    return np.stack(pictures + [pictures[-1]] * (spec.frames - valid)), valid


def _frames_at(
    source: Source, keys: list[float], times: list[float], decoded: Generator[tuple[float, Any], None, None] | None
) -> Iterator[Any]:
    """The frame shown at each of the ascending times. decoded: frames from the first time on, if there are some."""
    decoded = decoded or decode_from(source, "video", times[0])
    shown, ahead = None, next(decoded, None)
    for time in times:
        key = bisect_right(keys, time - SEEK_MARGIN) - 1
        if shown is not None and key >= 0 and keys[key] > shown[0] + SEEK_MARGIN:
            decoded.close()
            decoded = decode_from(source, "video", time)
            shown, ahead = None, next(decoded, None)
        while ahead is not None and (shown is None or ahead[0] <= time + TIME_TOLERANCE):
            shown, ahead = ahead, next(decoded, None)
        if shown is None:
            raise BadMedia("too_short", f"there is no frame at {time:g} s")
        refuse_frame(shown[1].width, shown[1].height)
        yield shown[1]
    decoded.close()

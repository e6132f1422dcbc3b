"""Sound and video files through PyAV: opening them with bounds, seeking, and decoded frames with their times.

Time 0 is the container's start time (but not before 0), the same for sound and picture. PyAV is imported when first
needed, so that reading references stays cheap.
"""

import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

from mla_cli.data.references import BadMedia, Source

MAX_FRAME_PIXELS = 2**25  # one video frame; 8K has 2**25 pixels
MAX_FRAMES = 2**17  # decoded from one clip; over an hour at 30 frames a second
MAX_CHANNELS = 64

SEEK_MARGIN = 1.0  # seconds decoded before a cut, so that lossy audio and open groups of pictures have settled
# Neither play lists (which open further files or the network) nor text or devices.
CONTAINER_FORMATS = (
    "wav,w64,flac,mp3,ogg,aac,aiff,au,amr,flv,mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,asf,gif"
)


@cache
def load_av() -> Any:
    """PyAV with FFmpeg's own messages off: what matters arrives as an exception."""
    import av

    av.logging.set_level(None)
    return av


@contextmanager
def open_stream(source: Source, kind: str) -> Iterator[tuple[Any, Any]]:
    """(container, its first audio or video stream); every FFmpeg error inside the block leaves as `BadMedia`."""
    av = load_av()
    if isinstance(source, io.BytesIO):
        source.seek(0)
    # absolute: FFmpeg takes what stands before a colon for a protocol, as in `concat:a.mp4` or `subfile:...`
    file = source if isinstance(source, io.BytesIO) else os.path.abspath(source)
    options = {"format_whitelist": CONTAINER_FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(file, container_options=options, metadata_errors="replace") as container:
            yield container, _pick_stream(container, kind)
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadMedia("undecodable", f"FFmpeg cannot decode it: {detail.splitlines()[0][:200]}") from error


def _pick_stream(container: Any, kind: str) -> Any:
    """The first stream of a kind, ready to decode in this thread alone."""
    cover = load_av().stream.Disposition.attached_pic  # the picture on a record sleeve is not a video
    stream = next((s for s in getattr(container.streams, kind) if not s.disposition & cover), None)
    if stream is None:
        raise BadMedia(f"no_{kind}_stream", f"the file has no {kind} stream")
    context = stream.codec_context
    if context is None:
        raise BadMedia("undecodable", f"the {kind} stream's codec is unknown")
    context.thread_count = 1
    if kind == "video":
        refuse_frame(context.width, context.height)
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    elif context.channels > MAX_CHANNELS:
        raise BadMedia("undecodable", f"the audio stream claims {context.channels} channels")
    return stream


def refuse_frame(width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise BadMedia("undecodable", f"the video claims {width} x {height} pixels")


def seek(container: Any, stream: Any, seconds: float) -> bool:
    """Go to the last key frame at or before a time of the clip; False where the container cannot."""
    try:
        container.seek(int((seconds + origin_of(container)) / stream.time_base), stream=stream, backward=True)
    except load_av().error.FFmpegError:
        return False
    return True


def origin_of(container: Any) -> float:
    """Time stamp of the clip's time 0, in seconds; negative stamps belong to what an encoder put in front."""
    return max(0, container.start_time or 0) / 1_000_000  # FFmpeg counts it in microseconds


def decode_from(source: Source, kind: str, start: float) -> Generator[tuple[float, Any], None, None]:
    """(seconds, frame) in order, the first of them at or before `start` wherever the file has one there.

    Going back is done by opening the file again: after a seek to its beginning, FFmpeg no longer drops the samples that
    an MP3 encoder put in front.
    """
    for sought in (True, False) if start > SEEK_MARGIN else (False,):
        with open_stream(source, kind) as (container, stream):
            if sought and not seek(container, stream, start - SEEK_MARGIN):
                continue
            decoded = container.decode(stream)
            frame = next(decoded, None)
            if sought and is_late(frame, origin_of(container), start):
                continue  # the index led astray: once more from the beginning
            if frame is not None:
                yield from timed(chain((frame,), decoded), origin_of(container))
            return


def is_late(frame: Any, origin: float, start: float) -> bool:
    return frame is None or frame.time is None or frame.time - origin > start


def timed(frames: Iterable[Any], origin: float) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) of decoded frames; one without a time stamp begins where the one before it ended."""
    last, last_seconds = None, 0.0
    for count, frame in enumerate(frames):
        if count >= MAX_FRAMES:
            raise BadMedia("undecodable", f"more than {MAX_FRAMES:,} frames have to be decoded; cut the clip")
        seconds = frame.time
        if seconds is not None:
            seconds -= origin
        elif last is None:
            seconds = 0.0
        else:
            seconds = last_seconds + float((last.duration or 0) * (last.time_base or 0))
        yield seconds, frame
        last, last_seconds = frame, seconds

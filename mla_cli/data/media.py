"""From a reference in a manifest to pixels and samples: what the modules of files, pictures, video and sound offer.

Media files come from anywhere, so none of these modules trusts them: only known formats are opened, every amount is
bounded by a constant, and whatever goes wrong arrives as `BadMedia` with a problem kind and a reason.
"""

from mla_cli.data.audio import decode_audio, decode_sound, load_torchaudio, resample
from mla_cli.data.images import decode_image, fit_picture
from mla_cli.data.references import (
    BadMedia,
    Box,
    Ref,
    Source,
    decoding,
    file_stamp,
    open_source,
    parse_ref,
    read_start,
    resolve,
)
from mla_cli.data.video import decode_video, frame_times

__all__ = [
    "BadMedia",
    "Box",
    "Ref",
    "Source",
    "decode_audio",
    "decode_image",
    "decode_sound",
    "decode_video",
    "decoding",
    "file_stamp",
    "fit_picture",
    "frame_times",
    "load_torchaudio",
    "open_source",
    "parse_ref",
    "read_start",
    "resample",
    "resolve",
]

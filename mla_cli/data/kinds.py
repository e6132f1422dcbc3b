"""What kind of modality a file holds: by the suffix of its name, or by its first bytes, without any decoder."""

import re

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2 .tga".split()  # noqa: SIM905
)
AUDIO_SUFFIXES = frozenset(
    ".wav .w64 .flac .mp3 .ogg .oga .opus .m4a .aac .aif .aiff .au .amr .wma".split()  # noqa: SIM905
)
VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .flv .avi .mkv .webm .mov .mpg .mpeg .ts .3gp .3g2 .wmv .asf .ogv".split()  # noqa: SIM905
)
SUFFIX_KINDS = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys((".npy", ".npz"), "vector"),
    ".txt": "text_file",
}
HEAD_BYTES = 256  # that `kind_of_content` wants to see

_STARTS = {
    "image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  "),
    "audio": (b"fLaC", b"ID3", b".snd", b"#!AMR", b"riff\x2e\x91\xcf\x11"),
    "video": (b"\x1a\x45\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "vector": (b"\x93NUMPY",),
}
# RIFF and IFF files say what they hold after their size; MP4 and its relatives after `ftyp`.
_FORMS = {b"WEBP": "image", b"WAVE": "audio", b"AVI ": "video", b"AIFF": "audio", b"AIFC": "audio"}
_BRANDS = {b"avif": "image", b"avis": "image", b"M4A ": "audio", b"M4B ": "audio"}


def kind_of_content(head: bytes) -> str:
    """The kind that a file's first HEAD_BYTES show: image, audio, video, vector, text_file, or "" for anything else.

    >>> kind_of_content(b"RIFF....WAVEfmt "), kind_of_content(b"some words"), kind_of_content(b"\\x00\\x01")
    ('audio', 'text_file', '')
    """
    for kind, starts in _STARTS.items():
        if head.startswith(starts):
            return kind
    if head[:4] in (b"RIFF", b"FORM"):
        return _FORMS.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video")
    if head.startswith(b"FLV\x01") and len(head) > 4:
        return "video" if head[4] & 1 else "audio"  # a flag for each kind of stream
    if head.startswith(b"OggS"):
        return "video" if b"theora" in head else "audio"
    if _is_text(head):
        return "text_file"
    if head.startswith(b"BM") or re.match(rb"P[1-6]\s", head):
        return "image"
    if head[:1] == b"G" and head[188:189] == b"G":  # packets of an MPEG transport stream
        return "video"
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0:  # a frame of MP3 or AAC
        return "audio"
    return ""


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = head[: error.start].decode() if error.start >= HEAD_BYTES - 3 else ""  # cut within a character
    return bool(text.strip()) and "\0" not in text

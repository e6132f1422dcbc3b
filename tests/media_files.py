"""Small real media files for tests, made with PyAV and Pillow.

The pictures of a clip carry their number: a 4 x 3 grid of black and white cells, read back with `read_number` from the
picture at any size, however lossy the codec.
"""

import struct
from pathlib import Path

import av
import numpy as np
from PIL import Image

AUDIO_CODECS = {
    ".wav": "pcm_s16le",
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".ogg": "libopus",
    ".m4a": "aac",
}
CLIP_CODECS = {  # suffix -> (video, audio)
    ".flv": ("flv", "libmp3lame"),
    ".mp4": ("libx264", "aac"),
    ".avi": ("mpeg4", "libmp3lame"),
    ".mkv": ("libx264", "flac"),
    ".webm": ("libvpx", "libopus"),
}
ROWS, COLUMNS = 3, 4  # cells of a numbered picture: numbers 0 to 4,095
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


def tone(seconds: float, rate: int, frequency: float = 440.0, channels: int = 1, peak: float = 0.5) -> np.ndarray:
    """Sines as float32 (channel, samples); channel c has frequency x (c + 1)."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([peak * np.sin(2 * np.pi * frequency * (c + 1) * time) for c in range(channels)]).astype(np.float32)


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """White noise as float32 (channel, samples) within [-0.5, 0.5]: no two cuts of it are alike."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, round(seconds * rate))).astype(np.float32)


def write_audio(path: Path, waveform: np.ndarray, rate: int, codec: str | None = None) -> Path:
    """A sound file of float (channel, samples); the suffix names the container, `codec` an encoder of FFmpeg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        _write_sound(container, waveform, rate, codec or AUDIO_CODECS[path.suffix.lower()])
    return path


def float_wav(rate: int, channels: int, samples: np.ndarray, declared: int | None = None) -> bytes:
    """A WAV file of 32-bit floats with any header."""
    data = samples.astype("<f4").tobytes()
    size = len(data) if declared is None else declared
    header = struct.pack("<HHIIHH", 3, channels, rate, rate * channels * 4 & 0xFFFFFFFF, channels * 4 & 0xFFFF, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + body + data


def numbered_picture(number: int, width: int = 96, height: int = 72) -> np.ndarray:
    """uint8 (height, width, 3): the number's 12 bits as white (220) and black (30) cells, the lowest bit top left."""
    bits = (number >> np.arange(ROWS * COLUMNS)) & 1
    cells = np.where(bits, 220, 30).astype(np.uint8).reshape(ROWS, COLUMNS)
    return np.repeat(np.kron(cells, np.ones((height // ROWS, width // COLUMNS), np.uint8))[..., None], 3, axis=2)


def read_number(picture: np.ndarray) -> int:
    """The number in a picture (3, height, width) or (height, width, 3) of any size from 16 x 16."""
    grey = picture.mean(axis=0 if len(picture) == 3 else 2)
    height, width = grey.shape
    bits = [
        grey[round((r + 0.5) * height / ROWS), round((c + 0.5) * width / COLUMNS)] > 128
        for r in range(ROWS)
        for c in range(COLUMNS)
    ]
    return sum(int(bit) << place for place, bit in enumerate(bits))


def write_clip(
    path: Path,
    seconds: float = 2.5,
    fps: int = 30,
    sound: np.ndarray | None = None,
    rate: int = 22050,  # the rates that FLV allows are 11,025, 22,050 and 44,100
    width: int = 96,
    height: int = 72,
    key_every: int = 12,
    b_frames: int = 0,
    codecs: tuple[str, str] | None = None,
) -> Path:
    """A clip of numbered pictures; `sound` is float (channel, samples) at `rate` Hz or None for a silent picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video_codec, audio_codec = codecs or CLIP_CODECS[path.suffix.lower()]
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.gop_size = key_every
        if video_codec != "libvpx":
            video.codec_context.max_b_frames = b_frames
        audio = None if sound is None else _add_sound(container, sound, rate, audio_codec)
        for number in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, width, height), "rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            _encode_sound(container, audio, sound, rate)
    return path


def _write_sound(container, waveform: np.ndarray, rate: int, codec: str) -> None:
    _encode_sound(container, _add_sound(container, waveform, rate, codec), waveform, rate)


def _add_sound(container, waveform: np.ndarray, rate: int, codec: str):
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(waveform)]
    stream = container.add_stream(codec, rate=48000 if codec == "libopus" else rate, layout=layout)
    return stream


def _encode_sound(container, stream, waveform: np.ndarray, rate: int) -> None:
    layout = stream.codec_context.layout.name
    if stream.codec_context.name in ("pcm_s16le", "flac"):  # exact: what comes back is round(x * 32768) / 32768
        packed = np.clip(np.rint(waveform.T * 32768), -32768, 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
    else:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def ramp_picture(width: int = 40, height: int = 30) -> np.ndarray:
    """uint8 (height, width, 3): red grows to the right, green downwards, blue is 64."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 64)], axis=2).round().astype(np.uint8)


def write_image(path: Path, pixels: np.ndarray | None = None, mode: str = "RGB", **options) -> Path:
    """An image file of uint8 (height, width, 3), by default `ramp_picture`, converted to a Pillow mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp_picture() if pixels is None else pixels).convert(mode).save(path, **options)
    return path

"""What a file is, from its first bytes: files that PyAV, Pillow and NumPy wrote."""

import av
import numpy as np
import pytest
from media_files import AUDIO_CODECS, CLIP_CODECS, LFS_POINTER, noise, write_audio, write_clip, write_image

from mla_cli.data.kinds import HEAD_BYTES, SUFFIX_KINDS, kind_of_content


def kind(path) -> str:
    return kind_of_content(path.read_bytes()[:HEAD_BYTES])


@pytest.mark.parametrize("suffix", sorted(AUDIO_CODECS))
def test_sound(tmp_path, suffix):
    assert kind(write_audio(tmp_path / f"x{suffix}", noise(0.2, 16000), 16000)) == "audio"


@pytest.mark.parametrize(("suffix", "codec"), [(".aiff", "pcm_s16be"), (".au", "pcm_s16be"), (".aac", "aac")])
def test_more_sound(tmp_path, suffix, codec):
    assert kind(write_audio(tmp_path / f"x{suffix}", noise(0.2, 16000), 16000, codec=codec)) == "audio"
    assert SUFFIX_KINDS[suffix] == "audio"


@pytest.mark.parametrize("suffix", sorted(CLIP_CODECS))
def test_clips(tmp_path, suffix):
    assert kind(write_clip(tmp_path / f"x{suffix}", 0.2, sound=noise(0.2, 22050), width=32, height=24)) == "video"


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        (".mpg", ("mpeg1video", "mp2")),
        (".ts", ("mpeg2video", "mp2")),
        (".wmv", ("msmpeg4", "libmp3lame")),
        (".mov", ("mpeg4", "aac")),
    ],
)
def test_more_clips(tmp_path, suffix, codecs):
    sound = noise(0.4, 44100)
    path = write_clip(tmp_path / f"x{suffix}", 0.4, sound=sound, rate=44100, width=32, height=32, codecs=codecs)
    assert kind(path) == SUFFIX_KINDS[suffix] == "video"


def test_a_flash_file_of_sound_alone_is_sound(tmp_path):
    with av.open(str(tmp_path / "x.flv"), "w") as container:
        stream = container.add_stream("libmp3lame", rate=22050, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(0.3, 22050), format="fltp", layout="mono")
        frame.sample_rate = 22050
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert kind(tmp_path / "x.flv") == "audio"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".tiff", ".webp", ".bmp", ".ppm", ".jp2", ".avif"])
def test_pictures(tmp_path, suffix):
    assert kind(write_image(tmp_path / f"x{suffix}")) == SUFFIX_KINDS[suffix] == "image"


def test_arrays_and_texts(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    assert kind(tmp_path / "x.npy") == "vector"
    for text in (b"just words", b"BM, said he", b"G" * 300, "\u00e9".encode() * 200, ("x" + "\u00e9" * 200).encode()):
        assert kind_of_content(text[:HEAD_BYTES]) == "text_file", text


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"\0\0\0", b"\x80abc", b"PK\x03\x04\x14\0\0\0", b"RIFF\0\0\0\0none", b"\xff"]
)
def test_what_says_nothing(content):
    assert kind_of_content(content) == ""


def test_a_pointer_is_text_to_the_eye():
    assert kind_of_content(LFS_POINTER[:HEAD_BYTES]) == "text_file"

"""Decoding of real files, against PyAV, Pillow and torchaudio called by hand; references; hostile files."""

import io
import os
import struct
import time
import wave
import zipfile
import zlib

import av
import numpy as np
import pytest
from media_files import (
    AUDIO_CODECS,
    CLIP_CODECS,
    LFS_POINTER,
    float_wav,
    noise,
    ramp_picture,
    read_number,
    tone,
    write_audio,
    write_clip,
    write_image,
)
from PIL import Image

from mla_cli.data import audio, containers, media, references, video
from mla_cli.data.features import check, compute
from mla_cli.data.manifest import PROBLEM_KINDS
from mla_cli.data.media import BadMedia, decode_audio, decode_image, decode_sound, decode_video, parse_ref, resolve
from mla_cli.specs import FbankSpec, ImageSpec, VectorSpec, VideoSpec


def kind_of(call, *args, **options) -> str:
    """The problem kind that a call must raise; the reason must be one line of text."""
    with pytest.raises(BadMedia) as caught:
        call(*args, **options)
    assert caught.value.kind in PROBLEM_KINDS
    assert caught.value.reason.strip()
    assert "\n" not in caught.value.reason
    return caught.value.kind


# ---------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("a/b c.mp4", ("a/b c.mp4", None, None, None, None, None)),
        ("a #2.mp4", ("a #2.mp4", None, None, None, None, None)),
        ("a.mp4#t=1.5,4.25", ("a.mp4", None, 1.5, 4.25, None, None)),
        ("a.mp4#t=,4", ("a.mp4", None, None, 4.0, None, None)),
        ("a.mp4#t=npt:2", ("a.mp4", None, 2.0, None, None, None)),
        ("a.avi#t=1,2&xywh=percent:50,0,50,100", ("a.avi", None, 1.0, 2.0, (50.0, 0.0, 50.0, 100.0), None)),
        ("v.zip::d/x.png", ("v.zip", "d/x.png", None, None, None, None)),
        ("v.ZIP::a::b.png#xywh=percent:0,0,1,1", ("v.ZIP", "a::b.png", None, None, (0.0, 0.0, 1.0, 1.0), None)),
        ("f.npy::17", ("f.npy", "17", None, None, None, None)),
        ("odd::name.png", ("odd::name.png", None, None, None, None, None)),
        ("t.txt#encoding=latin-1", ("t.txt", None, None, None, None, "latin-1")),
    ],
)
def test_references_are_split(ref, parts):
    parsed = parse_ref(ref)
    found = (parsed.path, parsed.member, parsed.start, parsed.end, parsed.box, parsed.encoding)
    assert found == parts


@pytest.mark.parametrize(
    ("fragment", "kind"),
    [
        ("t=x", "undecodable"),
        ("t=", "undecodable"),
        ("t=3,2", "too_short"),
        ("t=2,2", "too_short"),
        ("xywh=1,2,3,4", "undecodable"),
        ("xywh=percent:60,0,50,100", "undecodable"),
        ("xywh=percent:0,0,0,100", "undecodable"),
        ("t=1,2&speed=2", "undecodable"),
        ("encoding=", "undecodable"),
    ],
)
def test_fragments_that_make_no_sense_are_refused(fragment, kind):
    assert kind_of(parse_ref, f"a.mp4#{fragment}") == kind


def test_no_reference_leads_out_of_the_root_unless_allowed(tmp_path):
    root = tmp_path / "root"
    write_image(root / "in.png")
    outside = write_image(tmp_path / "out.png")
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "inner.png").symlink_to(root / "in.png")
    beside = write_image(tmp_path / "root2" / "x.png")  # its name begins with the root's name
    (root / "beside.png").symlink_to(beside)

    assert resolve(root, "in.png") == root / "in.png"
    assert resolve(root, "inner.png") == root / "inner.png"
    for ref in (str(outside), "../out.png", "a/../../out.png", "link.png", "folder/out.png", "beside.png", "C:\\x.png"):
        assert kind_of(resolve, root, ref) == "outside_root", ref
    for ref in (str(outside), "../out.png", "link.png", "folder/out.png"):
        assert resolve(root, ref, allow_outside=True).samefile(outside)
        assert compute(ImageSpec(size=4), "image", root, ref, allow_outside=True).array.shape == (3, 4, 4)
        assert kind_of(check, "image", root, ref) == "outside_root"


def test_a_root_that_is_a_link_itself_is_fine(tmp_path):
    write_image(tmp_path / "real" / "x.png")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert resolve(tmp_path / "root", "x.png").is_file()


def test_what_is_not_a_file_is_missing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for ref in ("no.png", "folder", "loop", "pipe", "nul\0", "x" * 5000, "", "."):
        assert kind_of(resolve, tmp_path, ref) == "missing", ref


def test_blank_files_are_told_apart(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "pointer.flv").write_bytes(LFS_POINTER)
    assert kind_of(check, "audio", tmp_path, "empty.wav") == "empty"
    assert kind_of(check, "video", tmp_path, "pointer.flv") == "lfs_pointer"
    assert kind_of(compute, FbankSpec(), "audio", tmp_path, "pointer.flv") == "lfs_pointer"


def test_members_of_zip_archives(tmp_path, monkeypatch):
    image, clip = write_image(tmp_path / "x.png"), write_clip(tmp_path / "x.mp4", 0.5, sound=noise(0.5, 22050))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "d/x.png")
        archive.write(clip, "x.mp4")
        archive.writestr("empty.png", b"")
        archive.writestr("pointer.png", LFS_POINTER)
    for kind, spec, name in (
        ("image", ImageSpec(size=8), "d/x.png"),
        ("video", VideoSpec(size=8), "x.mp4"),
        ("audio", FbankSpec(frames=20), "x.mp4"),
    ):
        inside = compute(spec, kind, tmp_path, f"a.zip::{name}")
        alone = compute(spec, kind, tmp_path, name.removeprefix("d/"))
        assert np.array_equal(inside.array, alone.array)
        assert inside.valid == alone.valid
    assert kind_of(check, "image", tmp_path, "a.zip::no.png") == "missing"
    assert kind_of(check, "image", tmp_path, "a.zip::empty.png") == "empty"
    assert kind_of(check, "image", tmp_path, "a.zip::pointer.png") == "lfs_pointer"
    monkeypatch.setattr(references, "MAX_MEMBER_BYTES", 10)
    assert kind_of(check, "image", tmp_path, "a.zip::d/x.png") == "undecodable"
    (tmp_path / "broken.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:300])
    assert kind_of(check, "image", tmp_path, "broken.zip::d/x.png") == "undecodable"


def test_a_rewritten_archive_is_read_anew(tmp_path):
    for value in (10, 200):
        data = io.BytesIO()
        Image.new("L", (4, 4), value).save(data, "PNG")
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x.png", data.getvalue())
        os.utime(tmp_path / "a.zip", ns=(value, value))
        assert compute(ImageSpec(size=1, mode="grey"), "image", tmp_path, "a.zip::x.png").array.item() == value


# ---------------------------------------------------------------- sound


def steps(waveform: np.ndarray, bits: int = 16) -> np.ndarray:
    """A waveform as an integer format holds it."""
    return (np.rint(waveform * 2.0 ** (bits - 1)) / 2.0 ** (bits - 1)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_lossless_sound_comes_back_exactly_and_channels_are_averaged(tmp_path, suffix, channels):
    waveform = noise(0.7, 16000, channels)
    path = write_audio(tmp_path / f"x{suffix}", waveform, 16000)
    sound, rate = decode_sound(path)
    assert (rate, sound.dtype) == (16000, np.float32)
    np.testing.assert_allclose(sound, steps(waveform).mean(axis=0), atol=2e-7 if channels > 1 else 0)
    assert np.array_equal(decode_audio(path, 16000), sound)  # an equal rate touches nothing


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integer_samples_of_every_width_are_scaled_to_full_scale(tmp_path, width):
    values = np.array([-1.0, -0.5, 0.0, 0.25, 0.5])
    integers = (values * 2 ** (8 * width - 1)).astype(np.int64) + (128 if width == 1 else 0)
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:  # a writer that is not FFmpeg
        file.setparams((1, width, 8000, 0, "NONE", ""))
        file.writeframes(b"".join(int(i).to_bytes(width, "little", signed=width > 1) for i in integers))
    assert decode_sound(tmp_path / "x.wav")[0].tolist() == values.tolist()


@pytest.mark.parametrize("suffix", sorted(set(AUDIO_CODECS) - {".wav", ".flac"}))
def test_lossy_sound_keeps_its_tone_and_its_length(tmp_path, suffix):
    path = write_audio(tmp_path / f"x{suffix}", tone(1.0, 16000, 1000.0), 16000)
    sound = decode_audio(path, 16000)
    assert abs(len(sound) - 16000) <= 1024  # an encoder may pad its last frame
    spectrum = np.abs(np.fft.rfft(sound[:16000]))
    assert abs(np.argmax(spectrum) - 1000) <= 2  # Hz
    assert np.abs(sound[2000:14000]).max() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("suffix", sorted(CLIP_CODECS))
def test_sound_of_a_clip(tmp_path, suffix):
    path = write_clip(tmp_path / f"x{suffix}", 1.0, sound=tone(1.0, 22050, 1000.0))
    sound = decode_audio(path, 22050)
    assert len(sound) == pytest.approx(22050, abs=2500)
    assert np.argmax(np.abs(np.fft.rfft(sound[:22050]))) == pytest.approx(1000, abs=3)


@pytest.mark.parametrize("suffix", sorted(AUDIO_CODECS))
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.31, 0.9), (2.2501, 3.1), (3.5, None), (None, 0.7)])
def test_cuts_are_slices_of_the_whole_to_the_sample(tmp_path, suffix, start, end):
    path = write_audio(tmp_path / f"x{suffix}", noise(4.0, 16000), 16000)
    whole, rate = decode_sound(path)
    cut, _ = decode_sound(path, start, end)
    first = round((start or 0) * rate)
    assert np.array_equal(cut, whole[first : None if end is None else round(end * rate)])
    assert len(cut) > 0


@pytest.mark.parametrize("suffix", sorted(CLIP_CODECS))
def test_cuts_of_clips_are_slices_within_the_time_stamps_precision(tmp_path, suffix):
    path = write_clip(tmp_path / f"x{suffix}", 4.0, sound=noise(4.0, 22050), width=32, height=24)
    whole, rate = decode_sound(path)
    cut, _ = decode_sound(path, 2.2, 3.0)
    assert len(cut) == round(3.0 * rate) - round(2.2 * rate)
    margin = round(1.5 * video.TIME_TOLERANCE * rate)  # FLV, Matroska and WebM count milliseconds
    first = round(2.2 * rate)
    assert any(np.array_equal(cut, whole[first + lag :][: len(cut)]) for lag in range(-margin, margin + 1))


def test_a_seek_that_lands_late_or_fails_is_made_good(tmp_path, monkeypatch):
    path = write_audio(tmp_path / "x.flac", noise(4.0, 16000), 16000)
    whole, _ = decode_sound(path)
    original = containers.seek
    for astray in (lambda c, s, t: original(c, s, t + 2.0), lambda c, s, t: original(c, s, 99.0), lambda *_: False):
        monkeypatch.setattr(containers, "seek", astray)
        assert np.array_equal(decode_sound(path, 2.5, 3.0)[0], whole[40000:48000])


def test_resampling_is_torchaudios_and_odd_ratios_stay_small(tmp_path):
    torch, torchaudio = media.load_torchaudio()
    path = write_audio(tmp_path / "x.wav", noise(0.5, 44100), 44100)
    by_hand = torchaudio.functional.resample(torch.from_numpy(decode_sound(path)[0]), 44100, 16000).numpy()
    assert np.array_equal(decode_audio(path, 16000), by_hand)

    sine = tone(1.0, 44101, 1000.0)[0]  # the exact filter for 44,101 -> 16,000 would take 2.8 GB
    begun = time.monotonic()
    resampled = media.resample(sine, 44101, 16000)
    assert time.monotonic() - begun < 5
    assert abs(len(resampled) - 16000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(15000) / 16000)
    np.testing.assert_allclose(resampled[1000:15000], expected[1000:], atol=2e-3)


def test_sound_that_is_not_there(tmp_path):
    write_clip(tmp_path / "mute.mp4", 0.3)
    write_audio(tmp_path / "x.wav", noise(0.5, 8000), 8000)
    write_audio(tmp_path / "short.wav", noise(0.02, 8000), 8000)
    write_audio(tmp_path / "silent.wav", np.full((1, 8000), 2e-5, np.float32), 8000)
    assert kind_of(decode_sound, tmp_path / "mute.mp4") == "no_audio_stream"
    assert kind_of(decode_sound, tmp_path / "x.wav", 3.0) == "too_short"
    assert kind_of(check, "audio", tmp_path, "short.wav") == "too_short"
    assert kind_of(check, "audio", tmp_path, "silent.wav") == "silent"
    assert kind_of(compute, FbankSpec(), "audio", tmp_path, "silent.wav") == "silent"
    assert check("audio", tmp_path, "x.wav") is None


def test_impossible_sound_is_refused_and_bounded(tmp_path, monkeypatch):
    values = noise(0.5, 8000)[0]
    for name, data, kind in (
        ("nan.wav", float_wav(8000, 1, np.where(np.arange(4000) == 9, np.nan, values)), "not_finite"),
        ("channels.wav", float_wav(8000, 1000, values), "undecodable"),
        ("rate.wav", float_wav(3, 1, values), "undecodable"),
    ):
        (tmp_path / name).write_bytes(data)
        assert kind_of(decode_audio, tmp_path / name, 16000) == kind, name
    (tmp_path / "long.wav").write_bytes(float_wav(8000, 1, values, declared=0xFFFFFFF0))
    assert len(decode_sound(tmp_path / "long.wav")[0]) == 4000  # what is there counts, not what is claimed
    monkeypatch.setattr(audio, "MAX_SAMPLES", 3000)
    assert kind_of(decode_sound, tmp_path / "long.wav") == "undecodable"
    assert len(decode_sound(tmp_path / "long.wav", 0.1, 0.4)[0]) == 2400
    assert kind_of(decode_audio, tmp_path / "long.wav", 16000, 0.1, 0.4) == "undecodable"


# ---------------------------------------------------------------- video


def shown_at(path, times) -> list[av.VideoFrame]:
    """By hand: decode everything, take the last frame with time <= t + 1 ms."""
    with av.open(str(path)) as container:
        origin = max(0, container.start_time or 0) / 1e6
        frames = list(container.decode(container.streams.video[0]))
    stamps = np.array([float(f.time) - origin for f in frames])
    return [frames[max(0, int((stamps <= t + 0.001).sum()) - 1)] for t in times]


@pytest.mark.parametrize("suffix", sorted(CLIP_CODECS))
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(
    ("fps", "frames", "start", "end", "times"),
    [
        (1.0, 3, None, None, [0.0, 1.0, 2.0]),
        (2.0, 3, None, 5.0, [0.0, 1.5, 3.0]),
        (3.0, 4, 2.3, 3.9, [2.3, 2.3 + 1 / 3, 2.3 + 2 / 3, 3.3]),
        (0.5, 2, 1.7, 4.9, [1.7, 3.7]),
    ],
)
def test_frames_are_pyavs_at_the_documented_times(tmp_path, suffix, b_frames, fps, frames, start, end, times):
    seconds = 3.0 if end is None else 5.2
    sound = noise(seconds, 22050)
    path = write_clip(tmp_path / f"x{suffix}", seconds, sound=sound, b_frames=b_frames if suffix != ".flv" else 0)
    spec = VideoSpec(fps=fps, frames=frames, size=32)
    if end is None:
        end = 2.99  # the picture may begin later than the sound, and the clip then ends after 3 s
    array, valid = decode_video(path, spec, start, end)
    assert (array.shape, array.dtype, valid) == ((frames, 3, 32, 32), np.uint8, frames)
    by_hand = shown_at(path, times)
    for picture, frame in zip(array, by_hand, strict=True):
        expected = frame.to_image().resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(picture, np.asarray(expected).transpose(2, 0, 1))
    numbers = [read_number(picture) for picture in array]
    np.testing.assert_allclose(numbers, [t * 30 for t in times], atol=2.1)  # sound may start up to 50 ms earlier


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_the_clips_own_end_decides_how_many_times_there_are(tmp_path, suffix):
    path = write_clip(tmp_path / f"x{suffix}", 2.0)
    array, valid = decode_video(path, VideoSpec(fps=1.0, frames=4, size=32))
    assert valid == 2  # 0 and 1 s; 2 s is the end and belongs to nobody
    assert [read_number(picture) for picture in array] == [0, 30, 30, 30]


def test_frame_times():
    assert media.frame_times(0.0, 2.5, 1.0, 3) == [0.0, 1.0, 2.0]
    assert media.frame_times(0.0, 10.0, 1.0, 3) == [0.0, 3.0, 6.0]
    assert media.frame_times(0.0, 11.0, 1.0, 3) == [0.0, 3.0, 7.0]
    assert media.frame_times(1.0, 1.01, 1.0, 3) == [1.0]
    assert media.frame_times(0.0, 3.0000001, 1.0, 3) == [0.0, 1.0, 2.0]


def test_decoding_goes_only_as_far_as_needed(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "x.mp4", 20.0, width=32, height=24)
    decoded = []
    original = containers.timed

    def counted(*args):
        for item in original(*args):
            decoded.append(item[0])
            yield item

    monkeypatch.setattr(containers, "timed", counted)
    monkeypatch.setattr(video, "timed", counted)
    decode_video(path, VideoSpec(frames=1, size=8))
    assert len(decoded) <= 3
    decoded.clear()
    decode_video(path, VideoSpec(frames=1, size=8), start=10.0)
    assert len(decoded) <= 60
    assert min(decoded) > 8  # from the key frame a second before
    decoded.clear()
    decode_video(path, VideoSpec(frames=3, size=8))  # 0, 6 and 13 s
    assert len(decoded) <= 120
    assert max(decoded) < 13.2


def test_a_part_of_the_picture_and_a_middle_square(tmp_path):
    path = write_clip(tmp_path / "x.mp4", 0.2, width=96, height=72)
    whole = shown_at(path, [0.0])[0].to_image()
    right, _ = decode_video(path, VideoSpec(frames=1, size=48), box=(50.0, 0.0, 50.0, 100.0))
    expected = whole.resize((48, 48), Image.Resampling.BILINEAR, box=(48, 0, 96, 72))
    assert np.array_equal(right[0], np.asarray(expected).transpose(2, 0, 1))
    square, _ = decode_video(path, VideoSpec(frames=1, size=72, fit="crop"))
    assert np.array_equal(square[0], np.asarray(whole.crop((12, 0, 84, 72))).transpose(2, 0, 1))


def test_video_that_is_not_there(tmp_path):
    write_audio(tmp_path / "x.mp3", noise(0.5, 16000), 16000)
    path = write_clip(tmp_path / "x.mp4", 1.0)
    assert kind_of(check, "video", tmp_path, "x.mp3") == "no_video_stream"
    assert kind_of(decode_video, path, VideoSpec(), 5.0, 7.0) == "too_short"
    assert check("video", tmp_path, "x.mp4#t=0.2,0.5") is None


def test_long_clips_are_bounded(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "x.mp4", 2.0, key_every=60)
    for module, name in ((containers, "MAX_FRAMES"), (video, "MAX_PACKETS")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 20)
            assert kind_of(decode_video, path, VideoSpec(size=8)) == "undecodable"
    monkeypatch.setattr(containers, "MAX_FRAME_PIXELS", 1000)
    assert kind_of(decode_video, path, VideoSpec(size=8)) == "undecodable"


def test_playlists_and_texts_are_no_media(tmp_path):
    path = write_clip(tmp_path / "x.mp4", 0.3)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {path.name}\n")
    (tmp_path / "hls.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path.name}\n#EXT-X-ENDLIST\n")
    (tmp_path / "text.mp4").write_text("just some words\n" * 100)
    for name in ("list.mp4", "hls.mp4", "text.mp4"):
        assert kind_of(check, "video", tmp_path, name) == "undecodable", name


def test_the_suffix_decides_nothing(tmp_path):
    clip = write_clip(tmp_path / "x.flv", 0.5, sound=noise(0.5, 22050)).rename(tmp_path / "X Y \u00e9.WAV")
    assert len(decode_audio(clip, 16000)) > 7000
    assert decode_video(clip, VideoSpec(size=8))[0].shape == (3, 3, 8, 8)
    write_image(tmp_path / "x.png").rename(tmp_path / "x.JPG")
    assert check("image", tmp_path, "x.JPG") is None


# ---------------------------------------------------------------- images

RAMP = ramp_picture()  # (30, 40, 3)


def decoded(path, **options) -> np.ndarray:
    """A 40 x 30 picture as (30, 40, 3), resized to a square of one pixel per column and back by picking rows."""
    return decode_image(path, ImageSpec(size=40, **options)).transpose(1, 2, 0)


def squashed(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".gif", ".jpg", ".webp", ".ppm"])
def test_images_of_every_format_match_the_picture(tmp_path, suffix):
    options = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    path = write_image(tmp_path / f"x{suffix}", **options)
    off = np.abs(decoded(path).astype(int) - squashed(RAMP)).max()
    assert off <= {".jpg": 6, ".gif": 60}.get(suffix, 0)  # GIF: 256 colours


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("RGB", ".png", 0), ("CMYK", ".tiff", 1), ("CMYK", ".jpg", 12), ("P", ".png", 60)],
)
def test_colour_modes_become_rgb(tmp_path, mode, suffix, tolerance):
    options = {"quality": 98} if suffix == ".jpg" else {}
    path = write_image(tmp_path / f"x{suffix}", mode=mode, **options)
    with Image.open(path) as opened:
        assert opened.mode == mode
    assert np.abs(decoded(path).astype(int) - squashed(RAMP)).max() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes_give_equal_channels_and_grey_gives_one(tmp_path, mode):
    path = write_image(tmp_path / "x.png", mode=mode)
    picture = decoded(path)
    assert (picture == picture[..., :1]).all()
    assert np.array_equal(decode_image(path, ImageSpec(size=40, mode="grey"))[0], picture[..., 0])
    grey = decode_image(write_image(tmp_path / "y.png"), ImageSpec(size=40, mode="grey"))
    assert grey.shape == (1, 40, 40)
    luma = Image.fromarray(RAMP).convert("L").resize((40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(grey[0], np.asarray(luma))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 25700], [32896, 65278, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as opened:
        assert opened.mode.startswith("I")
    picture = decode_image(tmp_path / f"x{suffix}", ImageSpec(size=2, mode="grey"))
    by_hand = Image.fromarray(np.array([[0, 1, 100], [128, 254, 255]], np.uint8)).resize(
        (2, 2), Image.Resampling.BILINEAR
    )
    assert np.array_equal(picture[0], np.asarray(by_hand))


def test_numbers_without_a_known_range_are_refused(tmp_path):
    for name, values, kind in (
        ("unit.tiff", np.array([[0.0, 0.5, 1.0]], np.float32), None),
        ("wide.tiff", np.array([[0.0, 3.0]], np.float32), "undecodable"),
        ("nan.tiff", np.array([[0.0, np.nan]], np.float32), "not_finite"),
        ("int.tiff", np.array([[0, 70000]], np.int32), "undecodable"),
    ):
        Image.fromarray(values).save(tmp_path / name)
        if kind is None:
            assert decode_image(tmp_path / name, ImageSpec(size=3, mode="grey"))[0, 0].tolist() == [0, 128, 255]
        else:
            assert kind_of(decode_image, tmp_path / name, ImageSpec()) == kind


@pytest.mark.parametrize("case", ["RGBA", "LA", "PA", "P with a transparent index", "RGB with a transparent colour"])
def test_transparency_is_laid_over_white(tmp_path, case):
    """Left half black and opaque, right half transparent (and black underneath)."""
    path = tmp_path / "x.png"
    alpha = np.zeros((4, 4), np.uint8)
    alpha[:, :2] = 255
    black = Image.new("L", (4, 4), 0)
    if case == "P with a transparent index":
        palette = Image.fromarray((alpha == 0).astype(np.uint8), "L").convert("P")
        palette.putpalette([0, 0, 0, 1, 1, 1])
        palette.save(path, transparency=1)
    elif case == "RGB with a transparent colour":
        Image.fromarray(np.where(alpha[..., None] == 0, [255, 0, 9], 0).astype(np.uint8)).save(
            path, transparency=(255, 0, 9)
        )
    elif case == "PA":
        path = path.with_suffix(".tiff")
        image = black.convert("P")
        image.putalpha(Image.fromarray(alpha))
        assert image.mode == "PA"
        image.save(path)
    else:
        image = black.convert(case)
        image.putalpha(Image.fromarray(alpha))
        image.save(path)
    picture = decode_image(path, ImageSpec(size=4))
    assert picture[:, :, 0].tolist() == [[0] * 4] * 3
    assert picture[:, :, 3].tolist() == [[255] * 4] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:4, :8] = [255, 0, 0]  # top left of what is stored
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    red = decode_image(tmp_path / "x.png", ImageSpec(size=8))[0] > 128
    row, column = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert red[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].mean() > 0.7
    assert red.mean() < 0.4


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tiff"])
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(tmp_path / f"x{suffix}") as opened:
        assert opened.n_frames == 3
    assert decode_image(tmp_path / f"x{suffix}", ImageSpec(size=1)).ravel().tolist() == [255, 0, 0]


def test_fit_and_part(tmp_path):
    path = write_image(tmp_path / "x.png")  # 40 x 30
    square = decode_image(path, ImageSpec(size=30, fit="crop")).transpose(1, 2, 0)
    assert np.array_equal(square, RAMP[:, 5:35])
    part = decode_image(path, ImageSpec(size=15), (50.0, 0.0, 37.5, 50.0)).transpose(1, 2, 0)
    assert np.array_equal(part, RAMP[:15, 20:35])
    assert kind_of(decode_image, path, ImageSpec(), (0.0, 0.0, 0.5, 100.0)) == "undecodable"


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize("side", [9_500, 13_000, 2_000_000_000])  # above the limit, above twice it, absurd
def test_decompression_bombs_are_refused(tmp_path, side):
    data = b"\0" * 100
    body = struct.pack(">I", len(data)) + b"IDAT" + data + b"\0\0\0\0"
    (tmp_path / "bomb.png").write_bytes(png_header(side, side) + body)
    begun = time.monotonic()
    assert kind_of(decode_image, tmp_path / "bomb.png", ImageSpec()) == "undecodable"
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".tiff", ".bmp", ".webp"])
def test_truncated_images_are_refused(tmp_path, suffix):
    path = write_image(tmp_path / f"x{suffix}", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert kind_of(check, "image", tmp_path, path.name) == "undecodable"


def test_formats_that_run_programs_are_not_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert kind_of(check, "image", tmp_path, "x.png") == "undecodable"


# ---------------------------------------------------------------- hostile files


@pytest.fixture(scope="module")
def victims(tmp_path_factory) -> dict[str, bytes]:
    """One small valid file of every kind: name -> content."""
    folder = tmp_path_factory.mktemp("victims")
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    paths = [write_audio(folder / f"sound{s}", noise(0.3, 16000), 16000) for s in AUDIO_CODECS]
    paths += [write_clip(folder / f"clip{s}", 0.4, sound=noise(0.4, 22050), width=32, height=24) for s in CLIP_CODECS]
    paths += [write_image(folder / f"image{s}", pixels) for s in (".jpg", ".png", ".gif", ".tiff", ".webp", ".bmp")]
    np.save(folder / "rows.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    np.savez(folder / "rows.npz", x=np.arange(12, dtype=np.float32).reshape(4, 3))
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "image.png", "x.png")
    paths += [folder / "rows.npy", folder / "rows.npz", folder / "images.zip"]
    return {path.name: path.read_bytes() for path in paths}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut, fill with 0xFF, double or empty: mostly near the beginning, where the headers are."""
    data = bytearray(content)
    match rng.integers(6):
        case 0 | 1:
            reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
            for place in rng.integers(reach, size=rng.integers(1, 20)):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            del data[int(rng.integers(len(data))) :]
        case 3:  # a huge declared size, count or duration
            place = int(rng.integers(min(len(data), 300)))
            data[place : place + 4] = b"\xff" * 4
        case 4:
            place, size = int(rng.integers(len(data))), int(rng.integers(1, 500))
            data[place : place + size] = rng.bytes(size)
        case 5:
            place = int(rng.integers(len(data)))
            data = data[:place] + data[place // 2 :]
    return bytes(data)


def use(folder, name: str) -> list[tuple[str, str]]:
    """Compute and check every feature that a file could be asked for: the problems as (kind, reason)."""
    kinds = {
        "sound": [("audio", FbankSpec(frames=40))],
        "clip": [("audio", FbankSpec(frames=40)), ("video", VideoSpec(size=8))],
        "image": [("image", ImageSpec(size=8))],
        "rows": [("vector", VectorSpec(width=3))],
        "images": [("image", ImageSpec(size=8))],
    }[name.partition(".")[0].partition("_")[0]]
    suffix = {"rows": "::2", "images": "::x.png"}.get(name.partition(".")[0].partition("_")[0], "")
    problems = []
    for kind, spec in kinds:
        for attempt in (lambda: compute(spec, kind, folder, name + suffix), lambda: check(kind, folder, name + suffix)):  # noqa: B023
            try:
                feature = attempt()
            except BadMedia as bad:
                problems.append((bad.kind, bad.reason))
            else:
                assert feature is None or np.isfinite(feature.array).all()
    for kind, reason in problems:
        assert kind in PROBLEM_KINDS
        assert reason.strip()
        assert "\n" not in reason
    return problems


def hostile_run(victims, folder, first: int, count: int) -> None:
    names = sorted(victims)
    outcomes = []
    for number in range(first, first + count):
        rng = np.random.default_rng([7, number])
        victim = names[number % len(names)]
        other = names[int(rng.integers(len(names)))] if rng.random() < 0.1 else victim  # a wrong extension
        stem, _, suffix = victim.partition(".")
        path = folder / f"{stem}_{number}.{suffix}"
        path.write_bytes(mutate(victims[other], rng))
        begun = time.monotonic()
        outcomes.append(use(folder, path.name))
        assert time.monotonic() - begun < 20, path.name
    assert 0.1 * count < outcomes.count([]) < 0.9 * count  # the mutations are neither harmless nor all fatal


def test_the_victims_are_good(victims, tmp_path):
    for name, content in victims.items():
        (tmp_path / name).write_bytes(content)
        assert use(tmp_path, name) == [], name


def test_hostile_files_are_decoded_or_listed(victims, tmp_path):
    hostile_run(victims, tmp_path, 0, 60)


@pytest.mark.slow
def test_many_hostile_files_are_decoded_or_listed(victims, tmp_path):
    hostile_run(victims, tmp_path, 1000, 300)

"""Features against second opinions: torchaudio called by hand, NumPy alone; shapes, padding, vectors, text files."""

import itertools

import numpy as np
import pytest
from media_files import float_wav, noise, tone, write_audio, write_clip, write_image
from numpy.lib.stride_tricks import sliding_window_view

from mla_cli.data import features, text
from mla_cli.data.features import BadMedia, check, compute, row_dtype, row_shape, token_count, vector_width
from mla_cli.data.media import decode_audio, load_torchaudio
from mla_cli.errors import MlaError
from mla_cli.specs import FEATURES_OF_KIND, FbankSpec, ImageSpec, LogStftSpec, TextSpec, VectorSpec, VideoSpec


def problem(*args) -> BadMedia:
    """What `compute` raises; `check` of the same reference must raise the same kind."""
    with pytest.raises(BadMedia) as caught:
        compute(*args)
    with pytest.raises(BadMedia) as checked:
        check(*args[1:])
    assert checked.value.kind == caught.value.kind
    return caught.value


@pytest.mark.parametrize(
    ("spec", "kind", "ref"),
    [
        (ImageSpec(size=7), "image", "x.png"),
        (ImageSpec(size=7, mode="grey"), "image", "x.png"),
        (FbankSpec(frames=30, mels=24), "audio", "x.wav"),
        (FbankSpec(frames=200, mels=24, dtype="float16"), "audio", "x.wav"),
        (FbankSpec(frames=30, mels=16, rate=8000, frame_length=32.0, frame_shift=16.0), "audio", "x.mp4"),
        (LogStftSpec(), "audio", "x.wav"),
        (LogStftSpec(rate=8000, seconds=0.5, n_fft=256, hop=100, dtype="float16"), "audio", "x.mp4"),
        (VideoSpec(frames=4, fps=8.0, size=9), "video", "x.mp4"),
        (TextSpec(length=9), "text", "some words"),
        (TextSpec(length=5, tokens="bytes"), "text_file", "x.txt"),
        (VectorSpec(width=3), "vector", "x.npy::1"),
    ],
)
def test_shape_and_type_are_what_is_announced(tmp_path, spec, kind, ref):
    write_image(tmp_path / "x.png")
    write_audio(tmp_path / "x.wav", noise(1.0, 16000), 16000)
    write_clip(tmp_path / "x.mp4", 0.7, sound=noise(0.7, 22050), width=32, height=24)
    (tmp_path / "x.txt").write_text("text")
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    feature = compute(spec, kind, tmp_path, ref)
    assert feature.array.shape == row_shape(spec)
    assert feature.array.dtype == row_dtype(spec)
    assert feature.array.flags.c_contiguous
    assert feature.valid >= 1
    again = compute(spec, kind, tmp_path, ref)
    assert again.array.tobytes() == feature.array.tobytes()


def test_the_issues_shapes():
    assert row_shape(FbankSpec()) == (1, 1024, 128)
    assert row_shape(LogStftSpec()) == (1, 257, 188)
    assert row_shape(VideoSpec()) == (3, 3, 224, 224)
    with pytest.raises(MlaError, match="width of a vector feature is not known"):
        row_shape(VectorSpec())


def test_a_kind_only_has_its_own_features(tmp_path):
    specs = {s.kind: s for s in (ImageSpec(), FbankSpec(), LogStftSpec(), VideoSpec(), TextSpec(), VectorSpec(width=1))}
    refused = 0
    for kind, name in itertools.product(FEATURES_OF_KIND, specs):
        if name not in FEATURES_OF_KIND[kind]:
            refused += 1
            with pytest.raises(MlaError, match=f"`{kind}` data has no feature of kind `{name}`"):
                compute(specs[name], kind, tmp_path, "x")
    assert refused == 29


# ---------------------------------------------------------------- sound


def fbank_by_hand(path, rate: int, **options) -> np.ndarray:
    torch, torchaudio = load_torchaudio()
    wave = torch.from_numpy(decode_audio(path, rate))[None]
    return torchaudio.compliance.kaldi.fbank(
        wave - wave.mean(),
        htk_compat=True,
        sample_frequency=rate,
        use_energy=False,
        window_type="hanning",
        dither=0.0,
        **options,
    ).numpy()


@pytest.mark.parametrize(("seconds", "valid"), [(0.5, 48), (2.5, 60)])
def test_fbank_is_torchaudios_bit_for_bit(tmp_path, seconds, valid):
    path = write_audio(tmp_path / "x.wav", noise(seconds, 16000) + 0.1, 16000)
    feature = compute(FbankSpec(frames=60), "audio", tmp_path, "x.wav")
    by_hand = fbank_by_hand(path, 16000, num_mel_bins=128, frame_shift=10)
    assert feature.valid == valid == min(len(by_hand), 60)
    assert np.array_equal(feature.array[0, :valid], by_hand[:valid])
    assert not feature.array[0, valid:].any()


def test_fbank_of_a_clips_resampled_sound_is_torchaudios(tmp_path):
    path = write_clip(tmp_path / "x.flv", 1.0, sound=noise(1.0, 22050, 2), width=32, height=24)
    spec = FbankSpec(rate=16000, mels=40, frames=200, frame_length=20.0, frame_shift=5.0)
    feature = compute(spec, "audio", tmp_path, "x.flv")
    by_hand = fbank_by_hand(path, 16000, num_mel_bins=40, frame_length=20.0, frame_shift=5.0)
    assert np.array_equal(feature.array[0, : feature.valid], by_hand[:200])
    half = compute(spec.model_copy(update={"dtype": "float16"}), "audio", tmp_path, "x.flv")
    assert np.array_equal(half.array, feature.array.astype(np.float16))


def test_fbank_agrees_with_kaldis_definition_in_numpy(tmp_path):
    """So that torchaudio itself has a second opinion: DC removal, pre-emphasis, Hann, power, mel triangles, log."""
    path = write_audio(tmp_path / "x.wav", noise(0.3, 16000) + tone(0.3, 16000, 700.0), 16000)
    wave = decode_audio(path, 16000).astype(np.float64)
    wave -= wave.mean()
    frames = sliding_window_view(wave, 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2
    mel = 1127 * np.log1p(np.fft.rfftfreq(512, 1 / 16000) / 700)
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), 42)
    rise = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    banks = np.maximum(0, np.minimum(rise, fall))
    banks[-1] = 0  # Kaldi leaves the Nyquist bin out
    expected = np.log(np.maximum(power @ banks, np.finfo(np.float32).eps))
    feature = compute(FbankSpec(frames=40, mels=40), "audio", tmp_path, "x.wav")
    assert feature.valid == len(expected) == 28
    np.testing.assert_allclose(feature.array[0, :28], expected, atol=2e-3)


def test_fbank_of_very_long_sound_is_computed_on_what_is_needed(tmp_path, monkeypatch):
    write_audio(tmp_path / "x.wav", noise(4.0, 16000), 16000)
    whole = compute(FbankSpec(frames=20), "audio", tmp_path, "x.wav")
    monkeypatch.setattr(features, "FBANK_SAMPLES", 1000)
    short = compute(FbankSpec(frames=20), "audio", tmp_path, "x.wav")
    assert short.valid == whole.valid == 20
    np.testing.assert_allclose(short.array, whole.array, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.4, 3.0, 4.2])
@pytest.mark.parametrize(("rate", "n_fft", "hop", "length"), [(22050, 512, 353, 3.0), (8000, 256, 80, 1.5)])
def test_log_stft_agrees_with_numpy(tmp_path, seconds, rate, n_fft, hop, length):
    path = write_audio(tmp_path / "x.wav", noise(seconds, 16000), 16000)
    spec = LogStftSpec(rate=rate, n_fft=n_fft, hop=hop, seconds=length)
    feature = compute(spec, "audio", tmp_path, "x.wav")

    wave = decode_audio(path, rate).astype(np.float64)
    samples = round(rate * length)
    tiled = np.tile(wave, samples // len(wave) + 1)[:samples]
    padded = np.pad(tiled, n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    spectrum = np.fft.rfft(sliding_window_view(padded, n_fft)[::hop] * window)
    expected = np.log(np.abs(spectrum.T) + 1e-7)
    assert feature.array.shape == (1, *expected.shape)
    assert feature.valid == expected.shape[1]
    np.testing.assert_allclose(feature.array[0], expected, rtol=0, atol=1e-5)  # float32 of numbers down to -16


def test_sound_too_loud_for_float32_is_listed(tmp_path):
    """Sound in floating point may hold any number; its power then leaves float32's range, and is not clipped."""
    (tmp_path / "loud.wav").write_bytes(float_wav(16000, 1, noise(0.5, 16000) * 1e30))
    with pytest.raises(BadMedia) as caught:
        compute(FbankSpec(frames=20), "audio", tmp_path, "loud.wav")
    assert caught.value.kind == "not_finite"


@pytest.mark.parametrize("spec", [FbankSpec(frames=40), LogStftSpec(rate=16000, n_fft=256, hop=80, seconds=0.5)])
def test_a_silent_part_has_the_least_value_of_its_feature(tmp_path, spec):
    """log(eps) and log(1e-7): finite. Sound that is silent throughout is listed, see test_media.py."""
    write_audio(tmp_path / "x.wav", np.concatenate([np.zeros(4000), noise(0.25, 16000)[0]])[None], 16000)
    feature = compute(spec, "audio", tmp_path, "x.wav")
    lowest = np.log(1e-7) if isinstance(spec, LogStftSpec) else np.log(np.finfo(np.float32).eps)
    silent = feature.array[0, :, 5:45] if isinstance(spec, LogStftSpec) else feature.array[0, :20]
    assert np.isfinite(feature.array).all()
    assert feature.array.min() == pytest.approx(lowest, abs=1e-3)
    np.testing.assert_allclose(silent, np.full(silent.shape, lowest), atol=1e-3)


def test_sound_cuts_reach_the_feature(tmp_path):
    write_audio(tmp_path / "x.wav", noise(3.0, 16000), 16000)
    part = compute(FbankSpec(frames=100), "audio", tmp_path, "x.wav#t=1.5,2")
    assert part.valid == 48
    whole = decode_audio(tmp_path / "x.wav", 16000)[24000:32000]
    assert np.array_equal(part.array, features.fbank(whole, FbankSpec(frames=100)).array)


def test_impossible_sound_specs_are_the_users_to_mend(tmp_path):
    write_audio(tmp_path / "x.wav", noise(0.1, 8000), 8000)
    with pytest.raises(MlaError, match="are impossible at 8000 Hz"):
        compute(FbankSpec(rate=8000, frame_shift=0.1), "audio", tmp_path, "x.wav")
    with pytest.raises(MlaError, match="too short for `n_fft: 4096`"):
        compute(LogStftSpec(rate=8000, seconds=0.2, n_fft=4096), "audio", tmp_path, "x.wav")
    with pytest.raises(BadMedia, match="less than one frame"):
        compute(FbankSpec(rate=8000, frame_length=200.0), "audio", tmp_path, "x.wav")


# ---------------------------------------------------------------- text


def test_text_is_padded_with_minus_one_and_cut(tmp_path):
    feature = compute(TextSpec(tokens="bytes", length=6), "text", tmp_path, "a\0b")
    assert feature.array.tolist() == [97, 0, 98, -1, -1, -1]  # 0 is a token, so it cannot be the padding
    assert feature.valid == 3
    assert compute(TextSpec(tokens="bytes", length=2), "text", tmp_path, "abc").valid == 2
    assert problem(TextSpec(), "text", tmp_path, " \n").kind == "empty"


def test_text_files_are_utf8_unless_the_reference_says_otherwise(tmp_path):
    spec = TextSpec(tokens="bytes", length=8)
    expected = list("h\u00e9".encode())
    for name, data, ref in (
        ("utf8.txt", "h\u00e9".encode(), "utf8.txt"),
        ("mark.txt", b"\xef\xbb\xbf" + "h\u00e9".encode(), "mark.txt"),
        ("latin.txt", "h\u00e9".encode("latin-1"), "latin.txt#encoding=latin-1"),
        ("a#b.txt", "h\u00e9".encode("utf-16"), "a#b.txt#encoding=utf-16"),
    ):
        (tmp_path / name).write_bytes(data)
        feature = compute(spec, "text_file", tmp_path, ref)
        assert feature.array[: feature.valid].tolist() == expected, name
        check("text_file", tmp_path, ref)


def test_text_files_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "latin.txt").write_bytes("h\u00e9llo".encode("latin-1"))
    bad = problem(TextSpec(), "text_file", tmp_path, "latin.txt")
    assert (bad.kind, bad.reason) == ("text_undecodable", "`latin.txt` is not utf-8 at byte 1 (0xe9)")
    assert problem(TextSpec(), "text_file", tmp_path, "latin.txt#encoding=klingon").kind == "text_undecodable"
    assert problem(TextSpec(), "text_file", tmp_path, "latin.txt#encoding=rot13").kind == "text_undecodable"
    assert problem(TextSpec(), "text_file", tmp_path, "no.txt").kind == "missing"
    (tmp_path / "blank.txt").write_text("\n\n")
    assert problem(TextSpec(), "text_file", tmp_path, "blank.txt").kind == "empty"
    monkeypatch.setattr(text, "MAX_TEXT_BYTES", 3)
    assert problem(TextSpec(), "text_file", tmp_path, "latin.txt#encoding=latin-1").kind == "text_undecodable"


def test_token_count_is_offered_here_too():
    assert token_count(TextSpec(tokens="bytes")) == 256
    assert token_count(TextSpec(buckets=77)) == 77


# ---------------------------------------------------------------- vectors

ROWS = np.arange(12, dtype=np.float64).reshape(4, 3)


def test_rows_of_arrays(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "one.npz", anything=ROWS)
    np.savez_compressed(tmp_path / "two.npz", x=ROWS, y=-ROWS)
    np.save(tmp_path / "vector.npy", ROWS[1])
    np.save(tmp_path / "column.npy", ROWS[:, 1])
    for ref in ("rows.npy::1", "one.npz::1", "two.npz::1", "vector.npy"):
        assert compute(VectorSpec(), "vector", tmp_path, ref).array.tolist() == [3.0, 4.0, 5.0], ref
        assert vector_width(tmp_path, ref) == 3
        check("vector", tmp_path, ref)
    assert compute(VectorSpec(width=1), "vector", tmp_path, "column.npy::2").array.tolist() == [7.0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float16, ">f8"])
def test_numbers_of_any_type_become_float32(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.array([[0, 1], [1, 1]]).astype(dtype))
    assert compute(VectorSpec(), "vector", tmp_path, "x.npy::0").array.tolist() == [0.0, 1.0]


def test_bad_rows(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "complex.npy", np.ones((1, 2), complex))
    np.save(tmp_path / "nothing.npy", np.zeros((3, 0)))
    np.save(tmp_path / "objects.npy", np.array([[{"a": 1}]], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    np.save(tmp_path / "nan.npy", np.array([[0.0, np.nan], [1.0, 1e39], [1.0, 2.0]]))
    (tmp_path / "short.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:-8])
    (tmp_path / "text.npz").write_text("no archive")
    for ref, kind in (
        ("rows.npy::4", "bad_row"),
        ("rows.npy::-1", "bad_row"),
        ("rows.npy::1.0", "bad_row"),
        ("rows.npy::", "bad_row"),
        ("rows.npy", "bad_row"),
        ("cube.npy::0", "bad_row"),
        ("words.npy::0", "bad_row"),
        ("complex.npy::0", "bad_row"),
        ("nothing.npy::0", "bad_row"),
        ("two.npz::0", "bad_row"),
        ("objects.npy::0", "undecodable"),
        ("short.npy::0", "undecodable"),
        ("text.npz::0", "undecodable"),
        ("nan.npy::0", "not_finite"),
        ("nan.npy::1", "not_finite"),
        ("none.npy::0", "missing"),
        ("../rows.npy::0", "outside_root"),
    ):
        assert problem(VectorSpec(), "vector", tmp_path, ref).kind == kind, ref
    assert compute(VectorSpec(width=2), "vector", tmp_path, "nan.npy::2").array.tolist() == [1.0, 2.0]
    with pytest.raises(BadMedia, match="has 3 values where 5 are expected") as caught:
        compute(VectorSpec(width=5), "vector", tmp_path, "rows.npy::0")
    assert caught.value.kind == "bad_row"


def test_a_rewritten_array_is_read_anew(tmp_path):
    for value in (1.0, 2.0):
        np.savez(tmp_path / "x.npz", x=np.full((2, 2), value))
        assert compute(VectorSpec(), "vector", tmp_path, "x.npz::0").array.tolist() == [value, value]


def test_arrays_written_by_python_2_are_read(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data.replace(b"(4, 3), }  ", b"(4L, 3L), }"))
    assert compute(VectorSpec(), "vector", tmp_path, "x.npy::3").array.tolist() == [1.0, 1.0, 1.0]

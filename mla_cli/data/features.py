"""One raw reference and a feature spec -> one array of fixed shape (the table of features: `specs.py`).

`compute` is what `mla prepare` runs for every sample and modality, `check` the quicker look of `mla prepare --check`.
Both raise `BadMedia` for anything wrong with the raw data, and `MlaError` only for a spec that cannot work at all.
"""

import os
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mla_cli.data.extractor import extracted, extracted_shape, extractor
from mla_cli.data.media import (
    BadMedia,
    decode_audio,
    decode_image,
    decode_sound,
    decode_video,
    decoding,
    file_stamp,
    load_torchaudio,
    open_source,
    parse_ref,
    read_start,
    resolve,
)
from mla_cli.data.text import read_text, token_count, tokenize
from mla_cli.errors import MlaError
from mla_cli.specs import (
    FEATURES_OF_KIND,
    ExtractorSpec,
    FbankSpec,
    FeatureSpec,
    ImageSpec,
    LogStftSpec,
    TextSpec,
    VectorSpec,
    VideoSpec,
)

__all__ = ["BadMedia", "Feature", "check", "compute", "row_dtype", "row_shape", "token_count", "vector_width"]

SILENCE = 1e-4  # peak below which a sound counts as silent; 3 steps of 16 bits
SHORTEST_SOUND = 0.025  # seconds; one frame of the usual filter bank
MAX_ARRAY_BYTES = 2**29  # of one array inside a .npz, which is read whole
MAX_WIDTH = 2**20  # values of one vector
FBANK_SAMPLES = 2**21  # filter banks of more samples than this are computed on what `frames` needs only


@dataclass(frozen=True)
class Feature:
    """One sample's array and how much of it is real.

    valid: frames before padding (fbank, video), all of them (log_stft, which is tiled), tokens (text), what the
    attention mask covers (extractor, if it makes one), else 1.
    """

    array: np.ndarray
    valid: int


def row_shape(spec: FeatureSpec) -> tuple[int, ...]:
    """Shape of one sample's array."""
    match spec:
        case ImageSpec():
            return (1 if spec.mode == "grey" else 3, spec.size, spec.size)
        case FbankSpec():
            return (1, spec.frames, spec.mels)
        case LogStftSpec():
            return (1, spec.n_fft // 2 + 1, 1 + _tiled_samples(spec) // spec.hop)
        case VideoSpec():
            return (spec.frames, 3, spec.size, spec.size)
        case TextSpec():
            return (spec.length,)
        case ExtractorSpec():
            return extracted_shape(spec)
    if spec.width is None:
        raise MlaError("the width of a vector feature is not known", "set `width` in the feature's section")
    return (spec.width,)


def row_dtype(spec: FeatureSpec) -> np.dtype:
    """dtype of one sample's array."""
    match spec:
        case ImageSpec() | VideoSpec():
            return np.dtype(np.uint8)
        case FbankSpec() | LogStftSpec():
            return np.dtype(spec.dtype)
        case TextSpec():
            return np.dtype(np.int32)
    return np.dtype(np.float32)


def compute(spec: FeatureSpec, kind: str, root: Path, ref: str, allow_outside: bool = False) -> Feature:
    """The array (`row_shape`, `row_dtype`) of one reference to a modality of `kind`. Raises `BadMedia`."""
    if spec.kind not in FEATURES_OF_KIND.get(kind, ()):
        known = ", ".join(FEATURES_OF_KIND.get(kind, ())) or "none"
        raise MlaError(f"`{kind}` data has no feature of kind `{spec.kind}`", f"its kinds are: {known}")
    if isinstance(spec, TextSpec):
        return text_feature(read_text(kind, root, ref, allow_outside), spec)
    if isinstance(spec, VectorSpec):
        vector = read_vector(root, ref, allow_outside)
        if spec.width not in (None, len(vector)):
            raise BadMedia("bad_row", f"`{ref}` has {len(vector)} values where {spec.width} are expected")
        return Feature(vector, 1)
    source, parsed = open_source(root, ref, allow_outside)
    match spec:
        case ImageSpec():
            return Feature(decode_image(source, spec, parsed.box), 1)
        case VideoSpec():
            return Feature(*decode_video(source, spec, parsed.start, parsed.end, parsed.box))
    sampling = extractor(spec.model).rate if isinstance(spec, ExtractorSpec) else spec.rate
    waveform = _refuse_silence(decode_audio(source, sampling, parsed.start, parsed.end))
    if isinstance(spec, ExtractorSpec):
        return Feature(*extracted(waveform, spec))
    return fbank(waveform, spec) if isinstance(spec, FbankSpec) else log_stft(waveform, spec)


def check(kind: str, root: Path, ref: str, allow_outside: bool = False) -> None:
    """Raise `BadMedia` if a reference cannot be used, at less cost than `compute`.

    Images and sound are decoded whole (damage shows nowhere else), of a video the first wanted frame, of a text all.
    """
    if kind in ("text", "text_file"):
        read_text(kind, root, ref, allow_outside)
    elif kind == "vector":
        read_vector(root, ref, allow_outside)
    else:
        source, parsed = open_source(root, ref, allow_outside)
        if kind == "image":
            decode_image(source, ImageSpec(size=1), parsed.box)
        elif kind == "video":
            decode_video(source, VideoSpec(fps=1.0, frames=1, size=1), parsed.start, parsed.end, parsed.box)
        elif kind == "audio":
            waveform, rate = decode_sound(source, parsed.start, parsed.end)
            if len(waveform) < SHORTEST_SOUND * rate:
                raise BadMedia("too_short", f"{len(waveform)} samples at {rate} Hz are less than one frame of 25 ms")
            _refuse_silence(waveform)
        else:
            raise MlaError(f"no modality kind `{kind}`", f"the kinds are: {', '.join(FEATURES_OF_KIND)}")


# ---------------------------------------------------------------- sound


def _refuse_silence(waveform: np.ndarray) -> np.ndarray:
    peak = np.abs(waveform).max()
    if peak < SILENCE:
        raise BadMedia("silent", f"the loudest sample is {peak:.1g} of full scale")
    return waveform


def fbank(waveform: np.ndarray, spec: FbankSpec) -> Feature:
    """Kaldi filter banks of a waveform at `spec.rate` Hz, cut or zero-padded to (1, frames, mels).

    Exactly `torchaudio.compliance.kaldi.fbank(wave - wave.mean(), htk_compat=True, sample_frequency=rate,
    use_energy=False, window_type="hanning", num_mel_bins=mels, dither=0.0, frame_length=..., frame_shift=...)`, as in
    the released code (which leaves `frame_length` at Kaldi's 25 ms).
    """
    torch, torchaudio = load_torchaudio()
    window = int(spec.rate * spec.frame_length * 0.001)  # samples, rounded down as Kaldi does
    shift = int(spec.rate * spec.frame_shift * 0.001)
    if window < 2 or shift < 1:
        raise MlaError(
            f"filter banks of {spec.frame_length} ms every {spec.frame_shift} ms are impossible at {spec.rate} Hz",
            "set a longer `frame_length` or `frame_shift`",
        )
    if len(waveform) < window:
        raise BadMedia("too_short", f"{len(waveform)} samples at {spec.rate} Hz are less than one frame of {window}")
    with torch.no_grad():
        wave = torch.from_numpy(waveform)[None]
        wave = wave - wave.mean()
        needed = window + (spec.frames - 1) * shift
        banks = torchaudio.compliance.kaldi.fbank(
            wave[:, : max(needed, FBANK_SAMPLES)],
            htk_compat=True,
            sample_frequency=spec.rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=spec.mels,
            dither=0.0,
            frame_length=spec.frame_length,
            frame_shift=spec.frame_shift,
        ).numpy()
    valid = min(len(banks), spec.frames)
    array = np.zeros(row_shape(spec), row_dtype(spec))
    array[0, :valid] = banks[:valid]
    return Feature(_finite(array), valid)


def _tiled_samples(spec: LogStftSpec) -> int:
    return round(spec.rate * spec.seconds)


def log_stft(waveform: np.ndarray, spec: LogStftSpec) -> Feature:
    """log(|STFT| + 1e-7) of a waveform at `spec.rate` Hz, repeated and cut to `seconds`: (1, n_fft / 2 + 1, frames).

    Periodic Hann window of n_fft samples, frames centred on multiples of `hop`, reflected at both ends: the defaults of
    the librosa versions that the OGM-GE family of codes used.
    """
    import torch

    samples = _tiled_samples(spec)
    if samples <= spec.n_fft // 2:
        raise MlaError(
            f"{spec.seconds} s at {spec.rate} Hz are too short for `n_fft: {spec.n_fft}`", "set a smaller `n_fft`"
        )
    tiled = np.resize(waveform, samples)  # repeats or cuts
    window = torch.hann_window(spec.n_fft, dtype=torch.float64)
    with torch.no_grad():
        # In float64: where |X| is near 0, its logarithm would be wrong in the third digit.
        wave = torch.from_numpy(tiled).double()
        spectrum = torch.stft(wave, spec.n_fft, spec.hop, window=window, pad_mode="reflect", return_complex=True)
        array = torch.log(spectrum.abs() + 1e-7).numpy()[None].astype(row_dtype(spec), order="C")
    return Feature(_finite(array), array.shape[-1])


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise BadMedia("not_finite", "the feature holds NaN or infinity")
    return array


# ---------------------------------------------------------------- text


def text_feature(text: str, spec: TextSpec) -> Feature:
    """Token numbers of a text, padded with -1."""
    tokens = tokenize(spec, text)
    array = np.full(spec.length, -1, np.int32)
    array[: len(tokens)] = tokens
    return Feature(array, len(tokens))


# ---------------------------------------------------------------- vectors


def vector_width(root: Path, ref: str, allow_outside: bool = False) -> int:
    """Number of values of a vector reference, for a `VectorSpec` that leaves its width to the data."""
    return len(read_vector(root, ref, allow_outside))


def read_vector(root: Path, ref: str, allow_outside: bool = False) -> np.ndarray:
    """float32 (width,): row N of `file.npy::N` or `file.npz::N` (array `x`, or the only one), or all of a 1-D `.npy`.

    Raises `BadMedia`: bad_row (no such row, not numbers, not one vector), not_finite, undecodable.
    """
    parsed = parse_ref(ref)
    path = resolve(root, parsed, allow_outside)
    array = _read_array(str(path), file_stamp(path), os.getpid())
    if parsed.member is not None:
        if not parsed.member.isdecimal() or array.ndim == 0 or int(parsed.member) >= len(array):
            rows = len(array) if array.ndim else 0
            raise BadMedia("bad_row", f"`{parsed.path}` has {rows} rows, numbered from 0, and no row `{parsed.member}`")
        array = array[int(parsed.member)]
    if array.ndim > 1 or array.size == 0:
        raise BadMedia("bad_row", f"`{ref}` has shape {array.shape}, not that of one vector")
    if array.size > MAX_WIDTH:
        raise BadMedia("bad_row", f"`{ref}` has {array.size:,} values, at most {MAX_WIDTH:,} are taken for a vector")
    if array.dtype.kind not in "biuf":
        raise BadMedia("bad_row", f"`{ref}` holds {array.dtype}, not numbers")
    with np.errstate(over="ignore"):  # beyond float32 is infinity, and refused
        vector = np.array(array, np.float32).reshape(-1)
    if not np.isfinite(vector).all():
        raise BadMedia("not_finite", f"`{ref}` holds NaN, infinity or a value beyond float32")
    return vector


@lru_cache(maxsize=16)
def _read_array(path: str, stamp: tuple[int, int], process: int) -> np.ndarray:
    """A `.npy` as a memory map, or the array of a `.npz` in memory; nothing pickled is ever loaded."""
    name = os.path.basename(path)
    head = read_start(Path(path))
    with decoding(f"`{name}`"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's remark that a file was written by Python 2
        if head.startswith(np.lib.format.MAGIC_PREFIX):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive:
            arrays = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            chosen = "x" if "x" in arrays else next(iter(arrays), "")
            if chosen != "x" and len(arrays) != 1:
                raise BadMedia("bad_row", f"`{name}` holds {len(arrays)} arrays and none is called `x`")
            if arrays[chosen].file_size > MAX_ARRAY_BYTES:
                raise BadMedia("undecodable", f"`{name}` claims {arrays[chosen].file_size:,} bytes; write a .npy")
            with archive.open(arrays[chosen]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)

"""Sound as one waveform: decoded, mixed to mono, cut and resampled. Torch and torchaudio are imported when needed."""

import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from mla_cli.data.containers import MAX_CHANNELS, decode_from
from mla_cli.data.references import BadMedia, Source
from mla_cli.errors import MlaError

MAX_SAMPLES = 2**25  # of one waveform, per channel, before and after resampling (128 MiB); longer ones need a cut
SAMPLE_RATES = (1_000, 768_000)  # Hz; outside lies only damage
MAX_RESAMPLING_KERNEL = 2**22  # entries; 441 x 160 for 44,100 -> 16,000 Hz, but 44,101 x 16,000 for 44,101 -> 16,000


def decode_audio(source: Source, rate: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """The waveform of `decode_sound` at `rate` Hz: float32 (samples,), resampled only where the rate differs."""
    waveform, source_rate = decode_sound(source, start, end)
    return waveform if rate == source_rate else resample(waveform, source_rate, rate)


def decode_sound(source: Source, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, int]:
    """The waveform as float32 (samples,), the mean of the channels with full scale [-1, 1], and its own rate in Hz.

    Lossy decoders (and resampling) overshoot full scale a little; that is kept. `start` and `end` are seconds and cut
    at sample round(time x rate), counted from the time stamp of the first frame that had to be decoded.
    Raises `BadMedia`: no_audio_stream, too_short (no sample), not_finite, undecodable.
    """
    waveform, rate = _decode_samples(source, start, end)
    if not len(waveform):
        raise BadMedia("too_short", "there is no sound" if start is None else f"there is no sound after {start:g} s")
    if not np.isfinite(waveform).all():
        raise BadMedia("not_finite", "the sound holds NaN or infinity")
    return waveform, rate


def _decode_samples(source: Source, start: float | None, end: float | None) -> tuple[np.ndarray, int]:
    """Mono samples of a cut and their rate in Hz."""
    pieces: list[np.ndarray] = []
    rate, position, kept = 0, 0, 0
    for seconds, frame in decode_from(source, "audio", start or 0.0):
        if not rate:
            rate = frame.sample_rate
            if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
                raise BadMedia("undecodable", f"the sound claims a rate of {rate} Hz")
            position = round(seconds * rate) if start is not None or end is not None else 0
            first = 0 if start is None else round(start * rate)
            last = math.inf if end is None else round(end * rate)
        elif frame.sample_rate != rate:
            raise BadMedia("undecodable", f"the rate changes from {rate} to {frame.sample_rate} Hz")
        mono = _mono(frame)
        skip, stop = max(0, first - position), min(len(mono), last - position)
        position += len(mono)
        if skip < stop:
            pieces.append(mono[skip : int(stop)])
            kept += len(pieces[-1])
        if kept > MAX_SAMPLES:
            raise BadMedia("undecodable", f"more than {MAX_SAMPLES:,} samples; cut the clip with `#t=START,END`")
        if position >= last:
            break
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), rate


# What one step of an integer sample is worth; 8-bit samples are centred on 128.
_STEPS = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63, "flt": 1.0, "dbl": 1.0}


def _mono(frame: Any) -> np.ndarray:
    """One decoded audio frame as float32 (samples,)."""
    values, name = frame.to_ndarray(), frame.format.name.removesuffix("p")
    channels = frame.layout.nb_channels
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadMedia("undecodable", f"the sound claims {channels} channels")
    values = values if frame.format.is_planar else values.reshape(-1, channels).T  # (channel, samples)
    values = values.astype(np.float32)
    scaled = (values - 128 if name == "u8" else values) * np.float32(_STEPS[name])
    return scaled[0] if channels == 1 else scaled.mean(axis=0, dtype=np.float32)


def resample(waveform: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """float32 (samples,) at another rate in Hz, by `torchaudio.functional.resample`.

    The filter has a row per step of the reduced ratio: rates that share no factor (44,101 and 16,000) would need
    gigabytes, so such a ratio is replaced by the nearest one of moderate size, off by less than one part in a million.
    """
    torch, torchaudio = load_torchaudio()
    ratio = Fraction(source_rate, rate)
    ratio = ratio.limit_denominator(max(1, int((MAX_RESAMPLING_KERNEL / ratio) ** 0.5)))
    if len(waveform) / ratio > MAX_SAMPLES:
        raise BadMedia("undecodable", f"more than {MAX_SAMPLES:,} samples at {rate} Hz; cut the clip")
    with torch.no_grad():
        wave = torch.from_numpy(waveform)
        return torchaudio.functional.resample(wave, ratio.numerator, ratio.denominator).numpy()


@cache
def load_torchaudio() -> tuple[Any, Any]:
    """(torch, torchaudio), or an `MlaError` that says what to install.

    torchaudio 2.11 refuses to load beside a torch built for another CUDA *minor* version, although it is the newest one
    and pip pairs it with any newer torch; upstream has since limited that check to the major version
    (github.com/pytorch/audio/pull/4226). We do the same. Only its filter banks and resampling are used, which are plain
    torch code.
    """
    import sys

    import torch

    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        ours = torch.version.cuda
        theirs = _torchaudio_cuda(torch)
        if "different CUDA versions" not in str(error) or not ours or ours.split(".")[0] != theirs.split(".")[0]:
            hint = f"install a torchaudio that fits torch {torch.__version__}, see https://pytorch.org/get-started"
            raise MlaError(f"torchaudio cannot be loaded: {str(error).splitlines()[0]}", hint) from error
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        try:
            torch.version.cuda = theirs  # seen by torchaudio's check alone, during this import
            import torchaudio
        finally:
            torch.version.cuda = ours
    return torch, torchaudio


def _torchaudio_cuda(torch: Any) -> str:
    """The CUDA version that the loaded torchaudio library was built for, such as `13.0`; "" where it is not loaded."""
    try:
        number = torch.ops._torchaudio.cuda_version()
    except (AttributeError, RuntimeError):
        return ""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""

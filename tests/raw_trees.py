"""Small but real raw trees of the five public layouts, with every defect that real copies have as an option.

Each `make_*(root, ...)` writes below `root` and returns the number of samples that a scan should find with every
modality present. Media are encoded on the spot: 64 x 48 pixels, half a second. The options add to a clean tree.
"""

import wave
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, FPS = 64, 48, 10
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
CODECS = {".flv": ("flv1", "aac"), ".avi": ("mpeg4", "pcm_s16le"), ".mp4": ("mpeg4", "aac")}
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


# ---------------------------------------------------------------- media


def tone(number: int, seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    """A mono tone whose pitch depends on `number`: int16 (samples,)."""
    times = np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * (200 + 37 * (number % 40)) * times)).astype(np.int16)


def picture(number: int) -> np.ndarray:
    """A picture that differs between numbers: uint8 (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(number)
    return np.kron(rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def write_wav(path: Path, number: int, silent: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = tone(number)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * (0 if silent else 1)).tobytes())


def write_jpeg(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path, format="JPEG")


def write_video(path: Path, number: int, seconds: float = 0.5, sound: bool = True) -> None:
    """A clip with one picture and one tone; the codecs follow from the suffix (FLV, AVI or MP4)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    video_codec, audio_codec = CODECS[suffix]
    with av.open(str(path), "w", format=suffix[1:]) as container:
        pictures = container.add_stream(video_codec, rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sounds = container.add_stream(audio_codec, rate=16000, layout="mono") if sound else None
        for _ in range(round(seconds * FPS)):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(pictures.encode())
        if sounds is not None:
            frame = av.AudioFrame.from_ndarray(tone(number, seconds)[None], format="s16", layout="mono")
            frame.sample_rate = 16000
            for packet in (sounds.encode(frame), sounds.encode()):
                container.mux(packet)


def truncate(path: Path, keep: float = 0.3) -> None:
    """Cut a file, as an interrupted download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


# ---------------------------------------------------------------- the five layouts


def make_cremad(
    root: Path,
    actors: int = 10,
    clips: int = 1,
    *,
    missing: bool = False,
    lfs_pointer: bool = False,
    truncated: bool = False,
    empty: bool = False,
    silent: bool = False,
    no_audio: bool = False,
    unknown_label: bool = False,
    bad_name: bool = False,
    duplicate: bool = False,
    upper_case: bool = False,
    odd_names: bool = False,
) -> int:
    """`clips` clips per actor and emotion; each option spoils (or only renames) one further clip.

    odd_names: the folders hold a space and an accent. Returns the number of clips that should scan whole.
    """
    audio, visual = root / "AudioWAV", root / "VideoFlash"
    if odd_names:
        audio, visual = audio / "d\u00e9p\u00f4t 1", visual / "d\u00e9p\u00f4t 1"

    def clip(name: str, number: int, wav: str = ".wav", flv: str = ".flv") -> tuple[Path, Path]:
        write_wav(audio / (name + wav), number, silent=silent and name.startswith("1076"))
        write_video(visual / (name + flv), number)
        return audio / (name + wav), visual / (name + flv)

    sentences = ("DFA", "IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "ITS", "TSI", "WSI")
    count = 0
    for a in range(actors):
        for emotion in EMOTIONS:
            for c in range(clips):
                clip(f"{1001 + a}_{sentences[c % 12]}_{emotion}_XX", count)
                count += 1
    if missing:
        clip("1001_MTI_ANG_LO", 900)[1].unlink()
    if lfs_pointer:
        clip("1001_MTI_DIS_LO", 901)[1].write_bytes(LFS_POINTER)
    if truncated:
        truncate(clip("1001_MTI_FEA_LO", 902)[1], keep=0.02)
    if empty:
        clip("1001_MTI_HAP_LO", 903)[0].write_bytes(b"")
    if silent:
        clip("1076_MTI_SAD_XX", 904)
    if no_audio:
        clip("1001_MTI_NEU_LO", 905)[0].write_bytes(b"RIFF, but not really")
    if unknown_label:
        clip("1001_MTI_ODD_XX", 906)
    if bad_name:
        write_wav(audio / "notes.wav", 907)
    if duplicate:
        write_wav(audio / "again" / "1001_DFA_ANG_XX.wav", 908)
    if upper_case:
        clip("1001_MTI_SAD_HI", 909, wav=".WAV", flv=".FLV")
    return count + lfs_pointer + truncated + empty + silent + no_audio + upper_case


def make_kinetics(
    root: Path,
    classes: tuple[str, ...] = ("blowing nose", "playing guitar", "tap dancing"),
    clips: int = 4,
    *,
    annotations: bool = False,
    whole: bool = False,
    missing: bool = False,
    other_class: bool = False,
    bad_annotation: bool = False,
    duplicate: bool = False,
    no_class: bool = False,
    truncated: bool = False,
    silent_track: bool = False,
    upper_case: bool = False,
    underscores: bool = False,
) -> int:
    """`clips` trimmed clips per class in each of train and val, or (whole) as many whole videos with annotations.

    annotations: an annotation file for the trimmed clips. missing, bad_annotation: lines of it that match no file.
    """
    lines, count = ["label,youtube_id,time_start,time_end,split"], 0
    for split in ("train", "val"):
        for label in classes:
            folder = root / split / (label.replace(" ", "_") if underscores else label)
            for c in range(clips):
                video = f"{split[0]}{classes.index(label):04d}-_{c:04d}"
                if whole:
                    write_video(root / "videos" / f"{video}.mp4", count, seconds=2)
                    lines.append(f"{label},{video},0.5,1.5,{split}")
                else:
                    write_video(folder / f"{video}_000012_000022.mp4", count)
                    lines.append(f'"{label}",{video},12,22,{split}')
                count += 1
    first = root / "train" / (classes[0].replace(" ", "_") if underscores else classes[0])
    if missing:
        lines.append(f"{classes[0]},gone0000000,3,13,train")
    if other_class:
        write_video(root / "train" / "zumba" / "zumba000000_000001_000011.mp4", 800)
        lines.append("zumba,zumba000000,1,11,train")
    if bad_annotation:
        lines.append(f"{classes[0]},badtimes000,ten,twenty,train")
    if duplicate:
        write_video(root / "val" / classes[0] / "t0000-_0000_000012_000022.mp4", 801)
    if no_class:
        write_video(root / "train" / "lonely00000_000001_000011.mp4", 802)
    if truncated:
        write_video(first / "broken00000_000001_000011.mp4", 803)
        truncate(first / "broken00000_000001_000011.mp4")
    if silent_track:
        write_video(first / "notrack0000_000001_000011.mp4", 804, sound=False)
    if upper_case:
        write_video(first / "UPPER000000_000001_000011.MP4", 805)
    if annotations or whole or missing or bad_annotation:
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / "all clips.csv").write_text("\n".join(lines) + "\n")
    return count + truncated + silent_track + upper_case + (whole and duplicate)  # no duplicate of a whole video


def make_food101(
    root: Path,
    classes: tuple[str, ...] = ("apple_pie", "pizza", "waffles"),
    pictures: int = 4,
    *,
    missing_picture: bool = False,
    missing_title: bool = False,
    unknown_label: bool = False,
    bad_row: bool = False,
    latin_title: bool = False,
    comma_title: bool = False,
    empty: bool = False,
    truncated: bool = False,
    duplicate: bool = False,
    upper_case: bool = False,
) -> int:
    """`pictures` pictures with titles per class in each of train and test."""
    count, titles = 0, dict[str, list[bytes]]()
    for split in ("train", "test"):
        titles[split] = []
        for label in classes:
            for i in range(pictures):
                name = f"{label}_{i + (100 if split == 'test' else 0)}"
                write_jpeg(root / "images" / split / label / f"{name}.jpg", count)
                titles[split].append(f'{name}.jpg,"My best {label}, number {i} \u2014 caf\u00e9",{label}'.encode())
                count += 1
    label, folder = classes[0], root / "images" / "train" / classes[0]
    if missing_picture:
        titles["train"].append(f"{label}_900.jpg,no picture,{label}".encode())
    if missing_title:
        write_jpeg(folder / f"{label}_901.jpg", 901)
    if unknown_label:
        write_jpeg(root / "images" / "train" / "stew" / "stew_1.jpg", 902)
        titles["train"].append(b"stew_1.jpg,A stew,stew")
    if bad_row:
        titles["train"].append(b"just a line")
    if latin_title:
        write_jpeg(folder / f"{label}_903.jpg", 903)
        titles["train"].append(f"{label}_903.jpg,caf\u00e9,{label}".encode("latin-1"))
    if comma_title:
        write_jpeg(folder / f"{label}_904.jpg", 904)
        titles["train"].append(f"{label}_904.jpg,one, two, three,{label}".encode())
    if empty:
        (folder / f"{label}_905.jpg").write_bytes(b"")
        titles["train"].append(f"{label}_905.jpg,empty picture,{label}".encode())
    if truncated:
        write_jpeg(folder / f"{label}_906.jpg", 906)
        truncate(folder / f"{label}_906.jpg")
        titles["train"].append(f"{label}_906.jpg,half a picture,{label}".encode())
    if duplicate:
        titles["train"].append(titles["train"][0])
    if upper_case:
        write_jpeg(folder / f"{label}_907.JPG", 907)
        titles["train"].append(f"{label}_907.JPG,LOUD,{label}".encode())
    (root / "texts").mkdir(parents=True, exist_ok=True)
    for split, rows in titles.items():
        (root / "texts" / f"{split}_titles.csv").write_bytes(b"\n".join(rows) + b"\n")
    return count + comma_title + empty + truncated + upper_case


def make_mvsa(
    root: Path,
    tweets: int = 6,
    *,
    contradiction: bool = False,
    latin: bool = False,
    missing: bool = False,
    unlabelled: bool = False,
    unknown_label: bool = False,
    bad_row: bool = False,
    duplicate: bool = False,
    empty: bool = False,
    truncated: bool = False,
    upper_case: bool = False,
) -> int:
    """`tweets` tweets per class; in some of each class one of the two labels is neutral."""
    data, lines, number = root / "data", ["ID\ttext,image"], 0

    def tweet(pair: str | None, suffix: str = ".jpg", text: bytes = b"a tweet") -> int:
        nonlocal number
        number += 1
        write_jpeg(data / f"{number}{suffix}", number)
        (data / f"{number}.txt").write_bytes(text + b" %d" % number)
        if pair is not None:
            lines.append(f"{number}\t{pair}")
        return number

    for label in ("positive", "neutral", "negative"):
        for i in range(tweets):
            tweet(f"{label},{label}" if i % 3 else f"neutral,{label}")
    count = number
    if contradiction:
        tweet("positive,negative")
    if latin:
        tweet("positive,positive", text="caf\u00e9 na\u00efve".encode("latin-1"))
    if missing:
        (data / f"{tweet('positive,neutral')}.txt").unlink()
    if unlabelled:
        tweet(None)
    if unknown_label:
        tweet("positive,joyful")
    if bad_row:
        lines.append("77777")
    if duplicate:
        lines.append("1\tnegative,negative")
    if empty:
        (data / f"{tweet('neutral,neutral')}.txt").write_bytes(b"")
    if truncated:
        truncate(data / f"{tweet('neutral,neutral')}.jpg")
    if upper_case:
        tweet("negative,neutral", suffix=".JPG")
    (root / "labelResultAll.txt").write_text("\r\n".join(lines) + "\r\n")
    return count + latin + empty + truncated + upper_case


def make_iemocap(
    root: Path,
    sessions: int = 5,
    *,
    missing_sound: bool = False,
    missing_video: bool = False,
    missing_text: bool = False,
    other_emotion: bool = False,
    unknown_label: bool = False,
    bad_row: bool = False,
    duplicate: bool = False,
    latin_text: bool = False,
    remarks: bool = False,
    truncated: bool = False,
    upper_case: bool = False,
) -> int:
    """Two dialogues a session (woman, then man with the markers), ten utterances each: both speakers, five emotions."""
    count = 0
    for k in range(1, sessions + 1):
        dialog, sentences = root / f"Session{k}" / "dialog", root / f"Session{k}" / "sentences" / "wav"
        for folder in ("transcriptions", "EmoEvaluation/Categorical"):
            (dialog / folder).mkdir(parents=True, exist_ok=True)
        for marked in "FM":
            name = f"Ses{k:02d}{marked}_impro01"
            last = k == sessions and marked == "M"
            labels, texts = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], list[bytes]()
            utterances = [
                (f"{name}_{speaker}{i:03d}", emotion)
                for i, emotion in enumerate(("neu", "ang", "sad", "hap", "exc"))
                for speaker in "FM"
            ]
            if last and other_emotion:
                utterances.append((f"{name}_F100", "fru"))
            if last and unknown_label:
                utterances.append((f"{name}_F101", "glad"))
            if last and (missing_sound or missing_text or latin_text):
                utterances += [(f"{name}_F{i}", "neu") for i in (102, 103, 104)]
            for i, (utterance, emotion) in enumerate(utterances):
                start, end = i * 0.4, i * 0.4 + 0.4
                labels += [f"[{start:.4f} - {end:.4f}]\t{utterance}\t{emotion}\t[2.5000, 2.5000, 2.5000]"]
                labels += ["C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
                said, encoding = f"{utterance} [{start:08.4f}-{end:08.4f}]: I said: {emotion}, caf\u00e9.", "utf-8"
                if utterance.endswith("F104") and latin_text:
                    encoding = "latin-1"
                if not (utterance.endswith("F103") and missing_text):
                    texts.append(said.encode(encoding))
                if not (utterance.endswith("F102") and missing_sound):
                    write_wav(sentences / name / (utterance + (".WAV" if upper_case else ".wav")), 100 * k + i)
            count += 10
            if last and (missing_sound or missing_text or latin_text):
                count += 3 - (missing_sound + missing_text + latin_text)
            if last and bad_row:
                labels.append(f"[2.0 - 1.0]\t{name}_F105\tneu\t[2.5, 2.5, 2.5]")
                texts.append(f"{name}_F105: no times".encode())
            if last and duplicate:
                labels.append(f"[0.0 - 0.4]\t{name}_F000\tsad\t[2.5, 2.5, 2.5]")
            if last and remarks:
                texts.append(b"M: [LAUGHTER]")
                (dialog / "EmoEvaluation" / f"._{name}.txt").write_bytes(b"\x00\x05\x16\x07[junk")
            # The single annotators' files must not be read.
            (dialog / "EmoEvaluation" / "Categorical" / f"{name}_e1_cat.txt").write_text(
                f"{name}_F000 :Anger; ()\n[0.0 - 0.4]\t{name}_F000\tsad\t[2.5, 2.5, 2.5]\n"
            )
            (dialog / "EmoEvaluation" / f"{name}.txt").write_text("\n".join(labels) + "\n")
            (dialog / "transcriptions" / f"{name}.txt").write_bytes(b"\n".join(texts) + b"\n")
            video = dialog / "avi" / "DivX" / (name + (".AVI" if upper_case else ".avi"))
            if last and missing_video:
                count -= len(utterances) - missing_sound - missing_text - latin_text - other_emotion - unknown_label
            else:
                write_video(video, k, seconds=0.4 * len(utterances) + 0.2)
                if last and truncated:
                    truncate(video)
    return count


MAKERS = {
    "cremad": make_cremad,
    "kinetics_sounds": make_kinetics,
    "food101": make_food101,
    "mvsa": make_mvsa,
    "iemocap": make_iemocap,
}

if __name__ == "__main__":  # python tests/raw_trees.py cremad FOLDER
    import sys

    MAKERS[sys.argv[1]](Path(sys.argv[2]))

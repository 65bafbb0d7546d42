"""Which clips the two decoders see differently, and by how much: the matrix of awkward clips, as a table.

Every clip is decoded by pyav and by ffmpeg, once with each ffmpeg binary that is there: the one of imageio-ffmpeg and
the system's. The clips are always made by the former, so that both decode the same bytes. `tests/media/test_matrix.py`
holds the same comparison to its limits.

    python benchmarks/decoders.py                  all clips: about two minutes
    python benchmarks/decoders.py --quick          ten of them
    python benchmarks/decoders.py --out FILE.json  also a FILE.md with the table
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from harness import ROOT, Result, finish, hardware, report, say

from kdctool.media import binary, decode_ffmpeg, decode_pyav
from kdctool.media.geometry import geometry
from kdctool.media.plan import Plan, plan, windows
from kdctool.media.settings import Segment, Settings, Tools
from kdctool.media.source import Source

SIZE = 96
LIMITS = {"mean": 0.5, "p999": 4.0, "sound_rms": 1e-3, "sound_shift": 0}
"""Grey levels before JPEG; sound in units of full scale; samples of 16 kHz."""
SHORTER = 160
"""Versions differ in how many samples a codec leaves after the end of a track: at most this many."""
PICTURE = "testsrc2=s=320x180:r=25:d=3"
SOUND = "aevalsrc='0.2*sin(2*PI*(200+150*t)*t)+0.02*random(0)':s=44100:d=3"  # A chirp: no shift looks like another.
REAL = ROOT.parent / "shared" / "data" / "clips"

X264 = ("-c:v", "libx264", "-preset", "fast")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params")
AAC = ("-c:a", "aac", "-ac", "2")
QUIET = "log-level=none"


@dataclass(frozen=True)
class Clip:
    """How a clip is made: from a picture and a sound, or from another clip of the matrix."""

    options: tuple[str, ...]
    picture: str = PICTURE
    sound: str = SOUND
    of: str = ""
    """The clip that is the input, instead of picture and sound; a real one where it is no name of the matrix."""
    twice: bool = False
    """`of` is a second input, too; the options in `before` hold for the first only."""
    before: tuple[str, ...] = ()
    segment: Segment | None = None


def _copy(of: str, *before: str) -> Clip:
    return Clip(("-c", "copy"), of=of, before=before)


def _voiced(of: str, *options: str) -> Clip:
    """A real picture stream, bit for bit, that gets a sound."""
    return Clip(("-map", "0:v:0", "-map", "1:a", "-c:v", "copy", "-shortest", *options), of=of)


_LONG = {"picture": "testsrc2=s=64x36:r=10:d=60", "sound": SOUND.replace("d=3", "d=60").replace("150*t", "5*t")}

CLIPS: dict[str, Clip] = {
    # Frame types and rates.
    "b_frames.mp4": Clip((*X264, "-g", "25", *AAC)),
    "no_b_frames.mov": Clip((*X264, "-bf", "0", *AAC)),
    "two_b_levels.mp4": Clip((*X264, "-bf", "6", "-b_strategy", "2", *AAC)),
    "open_gop.mkv": Clip((*X264, "-g", "20", "-x264-params", "open-gop=1:scenecut=0", *AAC)),
    "open_gop_hevc.mp4": Clip((*X265, f"{QUIET}:keyint=20:open-gop=1:scenecut=0:bframes=3", "-tag:v", "hvc1", *AAC)),
    "variable_rate.mp4": Clip(("-vf", "select='gt(random(5),0.6)'", "-fps_mode", "vfr", *X264, *AAC)),
    "variable_rate.mkv": Clip(("-vf", "select='gt(random(3),0.4)'", "-fps_mode", "vfr", *X264, *AAC)),
    "ntsc_rate.mp4": Clip(("-r", "30000/1001", *X264, *AAC)),
    "one_frame.mkv": Clip(("-frames:v", "1", "-t", "0.2", *X264, "-c:a", "flac")),
    # Clocks.
    "long_gop.mp4": Clip((*X264, "-g", "250", *AAC)),
    "edit_list.mp4": _copy("long_gop.mp4", "-ss", "1.3"),
    "edit_list.mov": _copy("long_gop.mp4", "-ss", "0.7"),
    "negative_start.mp4": Clip((*X264, *AAC, "-output_ts_offset", "-0.5", "-avoid_negative_ts", "disabled")),
    "negative_start.mov": Clip((*X264, *AAC, "-output_ts_offset", "-0.3", "-avoid_negative_ts", "disabled")),
    "late_start.ts": Clip((*X264, *AAC, "-output_ts_offset", "100")),
    "late_start.mp4": Clip((*X264, *AAC, "-output_ts_offset", "5")),
    "late_sound.mkv": Clip(
        ("-map", "1:v", "-map", "0:a", "-c", "copy"), of="b_frames.mp4", before=("-itsoffset", "0.8"), twice=True
    ),
    "late_sound.mp4": Clip(
        ("-map", "1:v", "-map", "0:a", "-c", "copy"), of="b_frames.mp4", before=("-itsoffset", "0.8"), twice=True
    ),
    "late_picture.mp4": Clip(
        ("-map", "0:v", "-map", "1:a", "-c", "copy"), of="b_frames.mp4", before=("-itsoffset", "0.6"), twice=True
    ),
    "late_picture.mkv": Clip(
        ("-map", "0:v", "-map", "1:a", "-c", "copy"), of="b_frames.mp4", before=("-itsoffset", "0.6"), twice=True
    ),
    "minute.mp4": Clip((*X264, *AAC), **_LONG, segment=Segment(42_340, 7_000)),
    "minute.mkv": Clip((*X264, *AAC), **_LONG, segment=Segment(42_340, 7_000)),
    "minute.ts": Clip((*X264, *AAC), **_LONG, segment=Segment(42_340, 7_000)),
    # Geometry.
    "rotated_90.mp4": _copy("b_frames.mp4", "-display_rotation", "90"),
    "rotated_180.mp4": _copy("b_frames.mp4", "-display_rotation", "180"),
    "rotated_270.mp4": _copy("b_frames.mp4", "-display_rotation", "270"),
    "wide_pixels.mp4": Clip(("-vf", "setsar=4/3", *X264, *AAC)),
    "narrow_pixels.mkv": Clip(("-vf", "setsar=8/9", *X264, *AAC)),
    "odd_size.mkv": Clip(("-vf", "scale=321:179", "-pix_fmt", "yuv444p", *X264, *AAC)),
    "odd_size_420.mkv": Clip(
        ("-vf", "scale=321:179", "-pix_fmt", "yuv420p", *AAC, "-c:v", "libvpx-vp9", *("-cpu-used", "8"))
    ),
    "upscaled.mp4": Clip((*X264, *AAC), picture="testsrc2=s=64x48:r=25:d=3"),
    "interlaced.mp4": Clip((*X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1", *AAC)),
    "interlaced_mpeg2.ts": Clip(("-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-q:v", "4", "-c:a", "mp2")),
    # Pixels.
    "ten_bit.mkv": Clip((*X265, QUIET, "-pix_fmt", "yuv420p10le", *AAC)),
    "ten_bit_h264.mp4": Clip((*X264, "-pix_fmt", "yuv420p10le", *AAC)),
    "yuv422.mov": Clip((*X264, "-pix_fmt", "yuv422p", *AAC)),
    "full_range.mp4": Clip(
        (
            *("-vf", "scale=out_range=pc:out_color_matrix=bt709,format=yuv420p"),
            *("-color_range", "pc", "-colorspace", "bt709", *X264, *AAC),
        )
    ),
    "bt709.mp4": Clip(("-vf", "scale=out_color_matrix=bt709,format=yuv420p", "-colorspace", "bt709", *X264, *AAC)),
    "left_chroma.mp4": Clip((*X264, "-chroma_sample_location", "topleft", "-pix_fmt", "yuv420p", *AAC)),
    "grey.mp4": Clip((*X264, "-pix_fmt", "gray", *AAC)),
    # Sound.
    "mono_8k.mkv": Clip((*X264, "-ar", "8000", "-ac", "1", "-c:a", "pcm_s16le")),
    "mono_8k.mp4": Clip((*X264, "-ar", "8000", "-ac", "1", "-c:a", "aac")),
    "stereo_48k.mkv": Clip((*X264, "-ar", "48000", *AAC)),
    "surround_48k.mp4": Clip((*X264, "-ar", "48000", "-af", "pan=5.1|c0=c0|c1=0.3*c0|c2=0.5*c0|c3=c0", "-c:a", "aac")),
    "surround_44k.mkv": Clip((*X264, "-af", "pan=5.1|c0=c0|c1=0.3*c0|c2=0.5*c0|c3=c0", "-c:a", "ac3")),
    "opus.mkv": Clip((*X264, "-c:a", "libopus", "-ac", "2")),
    "vorbis.mkv": Clip((*X264, "-c:a", "libvorbis", "-ac", "2")),
    "mp3.mkv": Clip((*X264, "-c:a", "mp3", "-ac", "2")),
    "mp3.mp4": Clip((*X264, "-c:a", "mp3", "-ac", "1")),
    # Codecs and containers.
    "vp9.webm": Clip(("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus")),
    "vp8.webm": Clip(("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libvorbis", "-ac", "2")),
    "av1.mkv": Clip(("-t", "1", "-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1", *AAC)),
    "av1.mp4": Clip(("-t", "1", "-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1", *AAC)),
    "mpeg4.avi": Clip(("-c:v", "mpeg4", "-bf", "2", "-q:v", "4", "-c:a", "mp3")),
    "h264_pcm.avi": Clip((*X264, "-bf", "0", "-c:a", "pcm_s16le")),
    "mpeg4.mov": Clip(("-c:v", "mpeg4", "-q:v", "4", *AAC)),
    "hevc.ts": Clip((*X265, QUIET, *AAC)),
    "mpeg2.ts": Clip(("-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-q:v", "4", "-c:a", "mp2")),
    "flv1.flv": Clip(("-c:v", "flv", "-q:v", "4", "-c:a", "mp3")),
    # Real ones; those without a sound get one.
    "real_nasa.mp4": Clip((), of="nasa_13013.mp4"),
    "real_talk.mp4": _copy("talk_clip.mp4", "-ss", "31", "-t", "10"),
    "real_full_range.mp4": _voiced("bt709_full_range.mp4", "-t", "3", *AAC),
    "real_ten_bit_h264.mp4": _voiced("h264_10bits.mp4", *AAC),
    "real_ten_bit_hevc.mp4": _voiced("h265_10bits.mp4", *AAC),
    "real_av1.mkv": _voiced("av1_video.mkv", *AAC),
}
QUICK = ("b_frames.mp4", "open_gop.mkv", "edit_list.mp4", "rotated_90.mp4", "full_range.mp4", "vp9.webm")


@dataclass(frozen=True)
class Difference:
    """How far ffmpeg's clip lies from pyav's."""

    mean: float
    p999: float
    largest: int
    """Grey levels before JPEG."""
    sound_rms: float
    sound_shift: int
    """Samples by which one track fits the other best."""
    shorter: int

    def broken(self) -> list[str]:
        """The limits that do not hold."""
        values = {name: abs(getattr(self, name)) for name in LIMITS} | {"shorter": abs(self.shorter)}
        return [name for name, value in values.items() if value > (LIMITS | {"shorter": SHORTER})[name]]


def binaries() -> dict[str, str]:
    """The ffmpeg binaries that are there: `bundled`, and `system` where another one is on PATH."""
    found = {"bundled": str(imageio_ffmpeg.get_ffmpeg_exe())}
    system = shutil.which("ffmpeg")
    if system is not None and Path(system).resolve() != Path(found["bundled"]).resolve():
        found["system"] = system
    return found


def real_is_missing(name: str) -> bool:
    """Whether a clip needs a real file that is not there."""
    of = CLIPS[name].of
    return bool(of) and of not in CLIPS and not (REAL / of).exists()


def make(name: str, folder: Path) -> Path:
    """Make a clip of the matrix, and what it is made of, once; return its path."""
    path, clip = folder / name, CLIPS[name]
    if path.exists():
        return path
    if clip.of and not clip.options:
        return Path(shutil.copyfile(REAL / clip.of, path))
    if clip.of:
        of = make(clip.of, folder) if clip.of in CLIPS else REAL / clip.of
        sources = ["-i", str(of)]
        if clip.twice:
            sources += ["-i", str(of)]
        elif "1:a" in clip.options:
            sources += ["-f", "lavfi", "-i", clip.sound]
    else:
        sources = ["-f", "lavfi", "-i", clip.picture, "-f", "lavfi", "-i", clip.sound]
    command = [binaries()["bundled"], "-v", "error", "-y", "-threads", "1", *clip.before, *sources, *clip.options]
    environment = os.environ | {"SVT_LOG": "0"}  # The AV1 encoder talks on its own.
    subprocess.run([*command, str(path)], check=True, timeout=120, stdin=subprocess.DEVNULL, env=environment)
    return path


def planned(path: Path, segment: Segment | None = None) -> tuple[Source, Plan]:
    """An open file, and what is asked of its first window."""
    settings = Settings(size=SIZE)
    source = Source(str(path))
    source.read_packets(None)
    shape = geometry(decode_pyav.first_frame(source), source.video_stream.sample_aspect_ratio, SIZE)
    return source, plan(source, settings, windows(source, settings, segment)[0], shape)


def compare(path: Path, tools: Tools, segment: Segment | None = None) -> Difference:
    """Decode with both. Rejected when one cannot, also when ffmpeg's timestamps are not those that were asked for."""
    source, wanted = planned(path, segment)
    try:
        fast, fast_sound = decode_pyav.decode(source, wanted)
        isolated, isolated_sound = decode_ffmpeg.decode(source, wanted, tools)
    finally:
        source.close()
    apart = np.abs(np.stack(isolated).astype(int) - np.stack(fast))
    length = min(len(fast_sound), len(isolated_sound))
    one, other = fast_sound[:length].astype(np.float64), isolated_sound[:length].astype(np.float64)
    return Difference(
        mean=float(apart.mean()),
        p999=float(np.percentile(apart, 99.9)),
        largest=int(apart.max()),
        sound_rms=float(np.sqrt(np.mean((one - other) ** 2))),
        sound_shift=shift(one, other),
        shorter=len(fast_sound) - len(isolated_sound),
    )


def shift(one: np.ndarray, other: np.ndarray) -> int:
    """Samples by which `other` has to be moved to fit `one` best."""
    size = 2 * len(one)
    match = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)), size)
    best = int(match.argmax())
    return best - size if best > len(one) else best


def table(found: dict[str, dict[str, Difference]]) -> list[str]:
    """Markdown: a row per clip and binary."""
    lines = [
        "| clip | ffmpeg | mean | 99.9 % | largest | sound RMS | shift | beyond the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for clip, by_binary in found.items():
        for name, apart in by_binary.items():
            lines.append(
                f"| {clip} | {name} | {apart.mean:.3f} | {apart.p999:.0f} | {apart.largest} | {apart.sound_rms:.1e} "
                f"| {apart.sound_shift} | {', '.join(apart.broken()) or '-'} |"
            )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few clips only")
    parser.add_argument("--clip", action="append", help="only this clip; may be given again")
    parser.add_argument("--out", type=Path, help="also write the JSON there, and the table beside it as .md")
    args = parser.parse_args(arguments)
    names = args.clip or (QUICK if args.quick else list(CLIPS))
    tools = {name: Tools(path, binary.version(path)) for name, path in binaries().items()}
    found: dict[str, dict[str, Difference]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if real_is_missing(name):
                say(f"{name} is left out: {REAL / CLIPS[name].of} is not there")
                continue
            path = make(name, Path(folder))
            found[name] = {key: compare(path, tool, CLIPS[name].segment) for key, tool in tools.items()}
            say(table({name: found[name]})[-1])
    lines = table(found)
    print("\n".join(lines))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = [
        Result(f"{clip}_{name}_{key}", getattr(apart, key), unit, 0.0, 1)
        for clip, by_binary in found.items()
        for name, apart in by_binary.items()
        for key, unit in (("mean", "levels"), ("p999", "levels"), ("sound_rms", "full scale"))
    ]
    worst = {
        f"{name}_{key}_of_limit": max(getattr(apart[name], key) for apart in found.values()) / LIMITS[key]
        for name in tools
        for key in ("mean", "p999", "sound_rms")
    }
    versions = {name: tool.ffmpeg_version for name, tool in tools.items()}
    packages = ("av", "numpy", "imageio-ffmpeg", "ffmpeg-python")
    finish(report("decoders", hardware(), packages, results, worst, ffmpeg=versions), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

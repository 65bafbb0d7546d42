"""Eight clips in one picture: the frame where the sounding digit is brightest, its box, and the sound below it.

python benchmarks/avdigits/picture.py --speech fsdd-recordings.tar.gz --digits FOLDER --out docs/avdigits.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from avdigits import drawing, protocol, sound
from avdigits.sources import Sources, read

COLUMNS, GAP, STRIP = 4, 6, 28
WHITE, GREY = (255, 255, 255), (130, 130, 130)


def picture(sources: Sources, seed: int = 0) -> Image.Image:
    """Four clips of test and four of test_hard. White frames the sounding digit, grey the silent one."""
    clips = [
        clip
        for name in ("test", "test_hard")
        for clip in list(protocol.plan_split(sources, protocol.SPLITS[name], 4 * 3, seed))[::3]
    ]
    height = protocol.SIDE + STRIP + GAP
    sheet = Image.new("RGB", (COLUMNS * (protocol.SIDE + GAP) + GAP, len(clips) // COLUMNS * height + GAP))
    for place, clip in enumerate(clips):
        at = (GAP + place % COLUMNS * (protocol.SIDE + GAP), GAP + place // COLUMNS * height)
        sheet.paste(_clip(clip, sources), at)
    return sheet


def _clip(clip: protocol.Clip, sources: Sources) -> Image.Image:
    pulses = sound.envelopes(clip, sources)
    frame = int(pulses[0].argmax())
    tile = Image.new("RGB", (protocol.SIDE, protocol.SIDE + STRIP))
    tile.paste(Image.fromarray(drawing.draw(clip, sources.images, pulses, [frame])[0]))
    pen = ImageDraw.Draw(tile)
    for digit, pulse, colour in ((clip.silent, pulses[1], GREY), (clip.sounding, pulses[0], WHITE)):
        x0, y0, x1, y1 = drawing.box(digit, float(pulse[frame]))
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour)
    middle = protocol.SIDE + STRIP // 2
    for x, loud in enumerate(_loudest(sound.sound(clip, sources))):
        pen.line((x, middle - loud, x, middle + loud), fill=(90, 160, 230))
    return tile


def _loudest(heard: NDArray[np.int16]) -> list[int]:
    """Half the height of the wave in each column."""
    columns = np.array_split(np.abs(heard.astype(np.int64)), protocol.SIDE)
    loudest = np.array([column.max() for column in columns])
    return [int(value) for value in loudest * (STRIP // 2 - 2) // max(int(loudest.max()), 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--speech", "--digits", "--out"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    picture(read(args.speech, args.digits)).quantize(200).save(args.out, optimize=True)


if __name__ == "__main__":
    main()

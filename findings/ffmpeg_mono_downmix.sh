#!/usr/bin/env bash
# FFmpeg's mix of several channels to one is a mean for integer samples and none for floats.
#
# PyAV 18.1.0 (FFmpeg 8.1.2), the same tone on every channel, libswresample asked for one channel at the same rate.
# One would guess that sound comes out as it went in, or at least alike for both kinds of samples.
# Seen: s16 keeps the level; flt is 1.41 times as loud from stereo and 3.41 times from 5.1, beyond full scale. In both
# kinds the fourth channel of 5.1 (LFE) is left out: a tone on that channel alone becomes silence.
# Most decoders of compressed sound (MP3, AAC, Opus, Vorbis) give floats, WAV and FLAC give integers: the same
# recording has another level in another file format. Exits with 1 if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np

RATE, LEVEL = 16000, 0.25
tone = LEVEL * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)


def mixed(kind, layout, channels, only=None):
    """How loud the one channel is, in units of the tone that goes in."""
    sound = np.repeat(tone[:, None], channels, 1)
    if only is not None:
        sound *= np.arange(channels) == only
    scale = {"s16": 32767, "flt": 1}[kind]
    data = (sound * scale).astype({"s16": np.int16, "flt": np.float32}[kind]).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(data, format=kind, layout=layout)
    frame.sample_rate = RATE
    resampler = av.AudioResampler(format=kind, layout="mono", rate=RATE)
    out = np.concatenate([f.to_ndarray().reshape(-1) for f in [*resampler.resample(frame), *resampler.resample(None)]])
    return float(np.abs(out / scale).max() / LEVEL)


expected = {
    ("s16", "stereo", 2, None): 1.0,
    ("flt", "stereo", 2, None): 2**0.5,
    ("s16", "5.1", 6, None): 1.0,
    ("flt", "5.1", 6, None): 2 + 2**0.5,
    ("s16", "5.1", 6, 3): 0.0,
    ("flt", "5.1", 6, 3): 0.0,
}
print(f"PyAV {av.__version__}, FFmpeg's libswresample {av.library_versions['libswresample']}")
changed = False
for (kind, layout, channels, only), factor in expected.items():
    seen = mixed(kind, layout, channels, only)
    print(f"{kind} {layout:7} {'all channels' if only is None else 'LFE alone':13} x {seen:.3f} (was {factor:.3f})")
    changed |= abs(seen - factor) > 0.01
sys.exit(changed)
PYTHON

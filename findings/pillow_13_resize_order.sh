#!/usr/bin/env bash
# Pillow 13 resizes some pictures down first and then across, Pillow 12 always the other way round, and it shows.
#
# Pillow 12.0.0 and 13.0.0: `Image.resize` in two directions is two passes with bytes in between. Bytes are clipped to 0
# and 255, which the filters that overshoot (bicubic, Lanczos) reach, so the order of the passes is part of the result.
# One would guess that the same call gives the same pixels, or at most other roundings.
# Seen on black and white noise of 100 x 400 pixels, resized to 120 x 90: bicubic differs by tens of grey levels, bilinear
# by 1. Each version gives exactly what two calls give that resize in one direction each: across first in 12, down first
# in 13; from 400 x 300 both go across first. torchvision, and so transformers' default image processors, always goes
# across first. Exits with 1 if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/resize.py" <<'PYTHON'
import sys

import numpy as np
import PIL
from PIL import Image

made = {}
for width, height in ((100, 400), (400, 300)):
    picture = Image.fromarray((np.random.default_rng(0).integers(0, 2, (height, width, 3)) * 255).astype(np.uint8))
    for name in ("BILINEAR", "BICUBIC", "LANCZOS"):
        by, case = Image.Resampling[name], f"{width}x{height} {name}"
        made[case] = np.asarray(picture.resize((120, 90), by))
        across_first = np.asarray(picture.resize((120, height), by).resize((120, 90), by))
        down_first = np.asarray(picture.resize((width, 90), by).resize((120, 90), by))
        made[f"{case} order"] = "across" if (made[case] == across_first).all() else (
            "down" if (made[case] == down_first).all() else "neither"
        )
print(f"Pillow {PIL.__version__}: 100 x 400 goes {made['100x400 BICUBIC order']} first, "
      f"400 x 300 goes {made['400x300 BICUBIC order']} first")
np.savez(sys.argv[1], **made)
PYTHON
for version in 12.0.0 13.0.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "pillow==$version" numpy==2.4.6
  "$folder/$version/bin/python" "$folder/resize.py" "$folder/$version.npz"
done
"$folder/13.0.0/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np

old, new = (np.load(f"{sys.argv[1]}/{version}.npz") for version in ("12.0.0", "13.0.0"))
levels = {
    name: int(np.abs(old[f"100x400 {name}"].astype(int) - new[f"100x400 {name}"].astype(int)).max())
    for name in ("BILINEAR", "BICUBIC", "LANCZOS")
}
print("the same call, 100 x 400 to 120 x 90, differs by at most", levels, "grey levels")
as_described = all(
    (old[f"100x400 {name} order"], new[f"100x400 {name} order"]) == ("across", "down")
    and (old[f"400x300 {name} order"], new[f"400x300 {name} order"]) == ("across", "across")
    for name in ("BICUBIC", "LANCZOS")
)
sys.exit(not (as_described and levels["BILINEAR"] <= 2 and levels["BICUBIC"] > 10))
PYTHON

"""An InternVL that starts and answers in no time, for tests of benchmarks."""

from epdjax.models.random_checkpoint import InternVLSize

SMALL = InternVLSize(
    vision_layers=1,
    vision_width=32,
    vision_heads=2,
    tile=28,
    patch=7,
    text_layers=1,
    text_width=32,
    text_heads=2,
    kv_heads=1,
    text_mlp=48,
    vocab=320,
    positions=4096,
)

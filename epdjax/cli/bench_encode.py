"""``bench-encode``: how fast the encoders of the paper's models are on the device at hand."""

import argparse

HELP = (
    "Time the engine's encode step of published encoders, with random weights, for a picture of 4032 x 3024 pixels: "
    "operations, seconds, share of the device's peak, memory."
)
# The preset that has it, how many encode units the picture becomes, and their size in its measure (tiles; patches of
# the slices, which are 37 x 28 patches large).
ENCODERS = {
    "InternViT-300M": ("InternVL2-8B", 13, 1),
    "InternViT-6B": ("InternVL2-26B", 13, 1),
    "SigLIP-400M": ("MiniCPM-V-2.6", 10, 1036),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("encoders", nargs="*", metavar="ENCODER", help=f"of {', '.join(ENCODERS)} (default: all)")
    add("--units", type=int, metavar="N", help="encoded in one step (default: those of the whole picture)")
    add("--layers", type=int, metavar="N", help="of the tower, fewer than it has: for devices that are slow or small")
    add("--dtype", default="auto", help="of weights and activations (default: bfloat16; CPU: float32)")
    add("--repeats", type=int, default=5, metavar="N", help="timed steps, after one that is not (default: %(default)s)")
    add("--peak-tflops", type=float, metavar="X", help="of the device (default: the vendor's figure, where known)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print, an encoder at a time."""
    import dataclasses
    import sys

    import jax
    import jax.numpy as jnp

    from epdjax.mesh.targets import peak_tflops
    from epdjax.models.presets import preset
    from epdjax.serving.encode_speed import measure_encode

    if unknown := [name for name in arguments.encoders if name not in ENCODERS]:
        print(f"no encoder {', '.join(unknown)}; known: {', '.join(ENCODERS)}", file=sys.stderr)
        return 2
    device = jax.devices()[0]
    automatic = "float32" if device.platform == "cpu" else "bfloat16"
    dtype = jnp.dtype(automatic if arguments.dtype == "auto" else arguments.dtype)
    peak = arguments.peak_tflops or peak_tflops(device)
    stated = f"{peak:g} TFLOP/s" if peak else "not known, see --peak-tflops"
    print(f"{device.device_kind}, {dtype}, JAX {jax.__version__}; peak {stated}")
    print("| encoder | units | TFLOP | s | TFLOP/s | share of peak | units/s | weights MiB | step MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.encoders or ENCODERS:
        preset_name, units, size = ENCODERS[name]
        family, model = preset(preset_name)
        if arguments.layers is not None:
            name = f"{name}, {arguments.layers} of {model.vision.num_layers} layers"
            model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, num_layers=arguments.layers))
        units = arguments.units or units
        speed = measure_encode(family, model, units, size, dtype=dtype, device=device, repeats=arguments.repeats)
        rate = speed.flops_per_s / 1e12
        share = f"{rate / peak:.0%}" if peak else "-"
        memory = f"{speed.weights / 2**20:.0f} | {speed.working / 2**20:.0f}"
        numbers = f"{speed.flops / 1e12:.2f} | {speed.seconds:.3g} | {rate:.3g} | {share} | {speed.units_per_s:.3g}"
        print(f"| {name} | {units} | {numbers} | {memory} |", flush=True)
    return 0

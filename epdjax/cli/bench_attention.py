"""``bench-attention``: each attention kernel against the reference, on the device at hand."""

import argparse

HELP = (
    "Time each attention kernel that this device has against the reference, for one layer's attention, and compare "
    "their results. The exit status is 1 if a kernel is further from the reference than rounding explains."
)
# stage -> rows, tokens, context, heads, KV heads, width of a head
SHAPES = {
    "encode": (4, 1025, 1025, 16, 16, 64),  # four 448-pixel tiles of InternViT-300M
    "prefill": (1, 512, 8192, 28, 4, 128),  # the last chunk of a long prompt of Qwen2-7B
    "decode": (16, 1, 8192, 28, 4, 128),
}
FIELDS = ("rows", "tokens", "context", "heads", "kv_heads", "head_dim")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(SHAPES)} (default: all)")
    add("--rows", type=int, metavar="N", help="encode units, or sequences")
    add("--tokens", type=int, metavar="N", help="queries in a row; decode has one")
    add("--context", type=int, metavar="N", help="keys in a row, the queries' own included; units: that are no padding")
    add("--heads", type=int, metavar="N", help="of queries")
    add("--kv-heads", type=int, metavar="N", help="of keys and values")
    add("--head-dim", type=int, metavar="N", help="width of a head")
    add("--block-size", type=int, default=16, metavar="N", help="tokens of a page (default: %(default)s)")
    add("--window", type=int, metavar="N", help="tokens back that a token sees, itself included (default: all)")
    add("--softcap", type=float, metavar="X", help="of scores (default: none)")
    add("--kernels", nargs="+", default=(), metavar="NAME", help="besides the reference (default: all there are)")
    add("--dtype", default="auto", help="of queries, keys and values (default: bfloat16; CPU: float32)")
    add("--repeats", type=int, default=5, metavar="N", help="timed batches of calls (default: %(default)s)")
    add("--peak-tflops", type=float, metavar="X", help="of the device (default: the vendor's figure, where known)")
    add("--peak-gbytes", type=float, metavar="X", help="of its memory, GB/s (default: the vendor's, where known)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print, a kernel at a time."""
    import sys

    import jax
    import jax.numpy as jnp

    from epdjax.mesh.targets import peak_gbytes, peak_tflops
    from epdjax.models.attention import AttentionKind
    from epdjax.serving.attention.check import TOLERANCE, Case
    from epdjax.serving.attention.rules import NAMES
    from epdjax.serving.attention.speed import kernels_for, measure

    if unknown := [stage for stage in arguments.stages if stage not in SHAPES]:
        print(f"no stage {', '.join(unknown)}; known: {', '.join(SHAPES)}", file=sys.stderr)
        return 2
    if unknown := [name for name in arguments.kernels if name not in NAMES[1:]]:
        print(f"no kernel {', '.join(unknown)}; known: {', '.join(NAMES[1:])}", file=sys.stderr)
        return 2
    device = jax.devices()[0]
    automatic = "float32" if device.platform == "cpu" else "bfloat16"
    dtype = automatic if arguments.dtype == "auto" else arguments.dtype
    if dtype not in TOLERANCE:
        print(f"no dtype {dtype}; known: {', '.join(TOLERANCE)}", file=sys.stderr)
        return 2
    peaks = arguments.peak_tflops or peak_tflops(device), arguments.peak_gbytes or peak_gbytes(device)
    stated = [f"{peak:g} {unit}" if peak else f"? {unit}" for peak, unit in zip(peaks, ("TFLOP/s", "GB/s"))]
    print(f"{device.device_kind}, {dtype}, JAX {jax.__version__}; peaks {stated[0]}, {stated[1]}")
    print("| stage | kernel | ms | TFLOP/s | share | GB/s | share | temporaries MiB | error | right |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    all_right = True
    for stage in arguments.stages or SHAPES:
        sizes = {name: getattr(arguments, name) or size for name, size in zip(FIELDS, SHAPES[stage])}
        kind = AttentionKind(arguments.window, None, arguments.softcap)
        try:
            case = Case(stage, **sizes, block_size=arguments.block_size, kind=kind)
        except ValueError as error:
            print(f"{stage}: {error}", file=sys.stderr)
            return 2
        for kernel in kernels_for(case, device, dtype, tuple(arguments.kernels)):
            try:
                speed = measure(case, kernel, device, jnp.dtype(dtype), arguments.repeats)
            except Exception as error:  # whatever a compiler or a driver says of a kernel: the others come next
                all_right = False
                print(f"{stage} with {kernel} failed: {error}", file=sys.stderr, flush=True)
                continue
            all_right &= speed.right
            rates = case.flops / speed.seconds / 1e12, case.bytes(dtype) / speed.seconds / 1e9
            columns = [
                f"{rate:.3g} | {rate / peak:.0%}" if peak else f"{rate:.3g} | -" for rate, peak in zip(rates, peaks)
            ]
            numbers = f"{speed.seconds * 1e3:.3g} | {columns[0]} | {columns[1]} | {speed.temporaries / 2**20:.1f}"
            verdict = "yes" if speed.right else "NO"
            print(f"| {stage} | {kernel} | {numbers} | {speed.error:.1e} | {verdict} |", flush=True)
    return 0 if all_right else 1

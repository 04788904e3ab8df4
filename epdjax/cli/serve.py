"""``serve``: an OpenAI-compatible server on any split of any devices."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from epdjax.mesh.spec import MeshSpecError
from epdjax.serving.attention.rules import NAMES as ATTENTION
from epdjax.serving.config import DTYPES, LADDERS, ROLE_SWITCHING, EngineConfig
from epdjax.serving.limits import ServingLimits
from epdjax.serving.policies import ASSIGNMENTS, ORDERS

HELP = "Serve a model over HTTP, its stages on separate submeshes."
DEFAULTS = {field.name: field.default for field in EngineConfig.__dataclass_fields__.values()}


def default_compile_cache() -> Path:
    """Where compiled programs are kept between starts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epdjax" / "jax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="DIR", help="checkpoint folder; default: the bundled demo model")
    add(
        "--mesh",
        nargs="?",
        default="auto",
        const="auto",
        metavar="SPEC",
        help="which devices do what, such as 5E2P1D, 8EPD or 2E1Px2,1Dx4; alone or left out: a split for this machine",
    )
    add(
        "--admin-key",
        metavar="KEY",
        help="lets who sends it (Authorization: Bearer KEY) change roles under /admin; default: $EPDJAX_ADMIN_KEY, and "
        "without either there is no /admin",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port to listen on, 0 for any free one (default: %(default)s)")
    add(
        "--forwarded-allow-ips",
        default="",
        metavar="ADDRESSES",
        help="proxies whose X-Forwarded-For is believed (addresses and networks, with commas); default: none",
    )
    add("--served-model-name", metavar="NAME", help="what clients call the model; default: the folder's name")
    add("--drain-timeout", type=float, default=120.0, metavar="S", help="time to finish after SIGTERM (default: 120)")
    engine = parser.add_argument_group("engine")
    add = engine.add_argument
    add(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of weights and caches (default: the checkpoint's; CPU: float32)",
    )
    add("--attention", choices=ATTENTION, default="auto", help="kernel, where it can be used (default: the best)")
    add("--max-model-len", type=int, metavar="N", help="longest prompt and answer together, tokens")
    add("--max-seqs", type=int, default=DEFAULTS["max_seqs"], metavar="N", help="sequences decoded together")
    add("--max-chunk", type=int, default=DEFAULTS["max_chunk"], metavar="N", help="prompt tokens per prefill step")
    add("--max-units", type=int, default=DEFAULTS["max_units"], metavar="N", help="encode units per device and step")
    add("--block-size", type=int, default=DEFAULTS["block_size"], metavar="N", help="tokens per KV block")
    add("--kv-blocks", type=int, metavar="N", help="KV blocks per instance; default: what memory leaves")
    add("--mm-blocks", type=int, metavar="N", help="MM blocks per prefill instance (a tile each, or 64 tokens)")
    add("--memory-share", type=float, default=DEFAULTS["memory_share"], metavar="X", help="of device memory to use")
    add("--no-irp", action="store_true", help="encode each unit on one encoder instead of sharing a request among all")
    add(
        "--order",
        default=DEFAULTS["order"],
        metavar="POLICY",
        help=f"in which queues are served: {', '.join(ORDERS)}, or one for each stage as in prefill=sjf,decode=fcfs",
    )
    add(
        "--assignment",
        default=DEFAULTS["assignment"],
        metavar="POLICY",
        help=f"of requests to instances: {', '.join(ASSIGNMENTS)}, or one for each stage",
    )
    add(
        "--decode-pace",
        type=float,
        default=DEFAULTS["decode_pace"],
        metavar="X",
        help="decode steps that other steps may last where an instance also decodes (default: %(default)s)",
    )
    add("--max-output-tokens", type=int, metavar="N", help="longest answer; default: what the context leaves")
    add(
        "--request-timeout",
        type=float,
        metavar="S",
        help="give requests up that are not finished after so many seconds",
    )
    add("--slo", type=float, default=DEFAULTS["slo_s"], metavar="S", help="when first tokens are due (order deadline)")
    add(
        "--role-switching",
        choices=ROLE_SWITCHING,
        default=DEFAULTS["role_switching"],
        help="instances change roles as the load changes; or it is only logged which would (default: %(default)s)",
    )
    add("--hang-timeout", type=float, default=DEFAULTS["hang_s"], metavar="S", help="a step that takes longer is dead")
    add("--move-timeout", type=float, default=DEFAULTS["move_s"], metavar="S", help="a longer move is made again")
    add("--max-requests", type=int, default=DEFAULTS["max_requests"], metavar="N", help="live requests; then 429")
    add("--buckets", choices=LADDERS, default="full", help="compiled shapes: trimmed start sooner and pad more")
    add("--compile-cache", metavar="DIR", default=str(default_compile_cache()), help="'none' for no cache on disk")
    limits = ServingLimits()
    http = parser.add_argument_group("bounds on requests")
    add = http.add_argument
    add("--max-prompt-chars", type=int, metavar="N", help="characters of a request's texts; default: by the context")
    add("--max-prompt-parts", type=int, metavar="N", help="messages and parts of a request; default: by the context")
    add("--max-connections", type=int, default=limits.max_connections, metavar="N", help="open connections")
    media = parser.add_argument_group("media")
    add = media.add_argument
    add("--max-images", type=int, default=limits.max_images_per_request, metavar="N", help="pictures per request")
    add("--max-image-pixels", type=int, default=limits.max_image_pixels, metavar="N", help="pixels per picture")
    add("--max-videos", type=int, default=limits.max_videos_per_request, metavar="N", help="videos per request")
    add("--max-video-frames", type=int, default=limits.max_video_frames, metavar="N", help="frames used of a video")
    add("--max-video-seconds", type=float, default=limits.max_video_seconds, metavar="S", help="length of a video")
    add("--max-audios", type=int, default=limits.max_audios_per_request, metavar="N", help="audio clips per request")
    add("--max-audio-seconds", type=float, default=limits.max_audio_seconds, metavar="S", help="length of a clip")
    add(
        "--decode-timeout", type=float, default=limits.decode_timeout_s, metavar="S", help="to decode a request's media"
    )
    add(
        "--max-decoded-bytes",
        type=int,
        default=limits.max_decoded_bytes,
        metavar="N",
        help="memory for decoding; then 429",
    )
    add("--allow-remote-media", action="store_true", help="fetch http(s) URLs (never from private addresses)")
    add("--allowed-media-host", action="append", default=[], metavar="HOST", help="only these hosts; may be repeated")
    add(
        "--allowed-media-port",
        type=int,
        action="append",
        default=list(limits.allowed_media_ports),
        metavar="PORT",
        help="ports besides 80 and 443 that remote media may come from; may be repeated",
    )
    add("--allowed-local-media-path", type=Path, metavar="DIR", help="allow file: URLs below this folder")


def engine_settings(arguments: argparse.Namespace) -> dict[str, object]:
    """`EngineConfig` fields from parsed arguments."""
    same = (
        "mesh served_model_name dtype max_model_len max_seqs max_chunk max_units block_size kv_blocks mm_blocks "
        "memory_share order assignment max_output_tokens decode_pace attention max_requests buckets"
    )
    cache = arguments.compile_cache
    return {
        **{name: getattr(arguments, name) for name in same.split()},
        "irp": not arguments.no_irp,
        "request_timeout_s": arguments.request_timeout,
        "role_switching": arguments.role_switching,
        "hang_s": arguments.hang_timeout,
        "move_s": arguments.move_timeout,
        "slo_s": arguments.slo,
        "compile_cache": None if cache == "none" else cache,
        "limits": ServingLimits(
            max_prompt_chars=arguments.max_prompt_chars,
            max_prompt_parts=arguments.max_prompt_parts,
            max_connections=arguments.max_connections,
            decode_timeout_s=arguments.decode_timeout,
            max_decoded_bytes=arguments.max_decoded_bytes,
            max_images_per_request=arguments.max_images,
            max_image_pixels=arguments.max_image_pixels,
            max_videos_per_request=arguments.max_videos,
            max_video_frames=arguments.max_video_frames,
            max_video_seconds=arguments.max_video_seconds,
            max_audios_per_request=arguments.max_audios,
            max_audio_seconds=arguments.max_audio_seconds,
            allow_remote_media=arguments.allow_remote_media,
            allowed_media_hosts=tuple(arguments.allowed_media_host),
            allowed_media_ports=tuple(arguments.allowed_media_port),
            allowed_local_media_path=arguments.allowed_local_media_path,
        ),
    }


def run(arguments: argparse.Namespace) -> int:
    """Build the engine, serve, and say how to ask."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there is no news here
    # Imported here so that `--help` and argument errors do not wait for JAX.
    from epdjax.cli.invitation import invitation
    from epdjax.cli.progress import CompileProgress
    from epdjax.demo import demo_model_path
    from epdjax.serving.http import bind, create_app, serve
    from epdjax.serving.interpreter import settle
    from epdjax.serving.llm import AsyncLLM

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in ("httpx", "jax"):  # JAX tells of every platform it does not find
        logging.getLogger(name).setLevel(logging.WARNING)
    model = arguments.model or demo_model_path()
    settings = engine_settings(arguments)
    if arguments.model is None and arguments.served_model_name is None:
        settings["served_model_name"] = "epdjax-demo"
    try:
        listener = bind(arguments.host, arguments.port)  # a taken port is noticed now, not after compiling
    except OSError as error:
        print(f"cannot listen on {arguments.host} port {arguments.port}: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        with CompileProgress() as progress:
            llm = AsyncLLM(model, progress=progress, **settings)  # type: ignore[arg-type]
    except (MeshSpecError, ValueError) as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 2
    print(_summary(llm, time.monotonic() - started), flush=True)
    log_late_compiles()
    settle()
    return serve(
        create_app(llm, admin_key=arguments.admin_key or os.environ.get("EPDJAX_ADMIN_KEY")),
        listener,
        drain_timeout_s=arguments.drain_timeout,
        trusted_proxies=arguments.forwarded_allow_ips,
        on_ready=lambda host, port: print(invitation(host, port, llm.model_name), flush=True),
    )


def log_late_compiles() -> None:
    """From now on JAX itself warns of whatever it compiles, and tells the shapes: nothing should be."""
    import jax

    jax.config.update("jax_log_compiles", True)


def _summary(llm: object, seconds: float) -> str:
    deployment = llm.deployment  # type: ignore[attr-defined]
    count, cached = len(deployment.programs), deployment.started.cached
    lines = [
        f"mesh {deployment.spec}, ready in {seconds:.1f} s ({count} programs, {cached} of them from a cache on disk)"
    ]
    stages = {"E": "encode", "P": "prefill", "D": "decode"}
    for name, instance in deployment.instances.items():
        roles = " + ".join(stages[role] for role in instance.roles)
        weights = sum(leaf.nbytes for _, leaves in instance.parts.values() for leaf in leaves) / 2**20
        devices = ", ".join(str(device) for device in instance.submesh.devices)
        lines.append(f"  {name}: {roles} on {devices}; {' and '.join(instance.parts)}, {weights:.1f} MiB")
    return "\n".join(lines)

"""What the tiny Qwen-VL checkpoints share: processor files, conversations, and what transformers makes of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.media import Video
from epdjax.models.processing.pictures import like_torchvision, resized
from tests.models.families.reference import Reference
from tests.models.tiny import random_checkpoint, tiny_tokenizer

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCAB_ROWS = 304  # more than there are tokens, as in real checkpoints
NEW_TOKENS = 32
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'video') %}"
    "{{ '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def special_ids() -> dict[str, int]:
    """The ids that config.json names."""
    tokenizer = tiny_tokenizer(SPECIALS)
    return {
        f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }


def write_checkpoint(
    folder: Path,
    hf_config: dict[str, Any],
    image: dict[str, Any],
    video: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """A complete folder: weights, tokenizer, chat template, settings of the image (and video) processor."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = hf_config["vision_config"]
    common = {
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "do_rescale": True,
        "do_normalize": True,
        "do_resize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    random_checkpoint(folder, hf_config, seed)
    tokenizer = tiny_tokenizer(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write(folder / "generation_config.json", {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]})
    _write(folder / "preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor"} | common | image)
    if video is not None:
        _write(folder / "video_preprocessor_config.json", common | video)


def qwen2_settings(own_video_settings: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Image and video processor settings of Qwen2-VL and Qwen2.5-VL, sizes in MM tokens of 8 x 8."""
    means = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    image = means | {"size": {"shortest_edge": 4 * 64, "longest_edge": 24 * 64}}
    video = means | {"size": {"shortest_edge": 2 * 64, "longest_edge": 9 * 64}}
    return image, video if own_video_settings else None


def qwen2_hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """The published layout of Qwen2-VL and Qwen2.5-VL: the decoder's fields at the top."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    vision = dict(config["vision_config"]) | {
        "in_chans": 3,
        "spatial_patch_size": config["vision_config"]["patch_size"],
    }
    return {
        **{key: value for key, value in text.items() if key != "model_type"},
        **{key: value for key, value in config.items() if key not in ("text_config", "vision_config")},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": vision | {"model_type": config["model_type"]},
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise, coarse enough to survive being resized."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 6), -(-width // 6), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def clip(seed: int, frames: int, width: int, height: int, fps: float, step: int) -> Video:
    """A video of which every `step`-th frame is kept."""
    kept = np.stack([np.asarray(picture(seed * 100 + i, width, height)) for i in range(frames)])
    return Video(kept, np.arange(frames) * step / fps, fps)


def conversations() -> dict[str, list[dict[str, Any]]]:
    """One turn each, and one of several."""
    wide, tall = picture(1, 70, 45), picture(2, 20, 62)

    def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in the picture, then?"}]}]

    def image(value: Image.Image) -> dict[str, Any]:
        return {"type": "image", "image": value}

    def video(value: Video) -> dict[str, Any]:
        return {"type": "video", "video": value}

    even, odd = clip(3, 4, 40, 24, fps=2.0, step=1), clip(4, 5, 24, 30, fps=8.0, step=4)
    return {
        "text": asked(),
        "one picture": asked(image(wide)),
        "two pictures": asked(image(wide), {"type": "text", "text": " and "}, image(tall)),
        "picture twice": asked(image(tall), image(tall)),
        # last in its turn, so that its positions in time go beyond those of the text after it
        "video": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, video(odd)]}],
        "picture and video": [*asked(video(even)), {"role": "assistant", "content": "A video."}, *asked(image(tall))],
    }


def media_of(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(kind, media) in the order of the prompt."""
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] != "text":
                yield part["type"], part[part["type"]]


def reference(folder: Path, messages: Sequence[dict[str, Any]], prompter: Any, clip_size: Any = None) -> Reference:
    """What transformers makes of the messages.

    Args:
        prompter: the HF processor class, whose texts and timestamps are used; it cannot be built without torchvision.
        clip_size: HF's ``smart_resize`` for videos; None: that for pictures.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

    hf, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    hf = hf.eval()
    hf.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = like_torchvision(Qwen2VLImageProcessorPil).from_pretrained(folder)
    path = folder / "video_preprocessor_config.json"
    video_settings = json.loads((path if path.is_file() else folder / "preprocessor_config.json").read_text())

    writer = prompter.__new__(prompter)
    writer.image_token, writer.video_token = "<|image_pad|>", "<|video_pad|>"
    writer.vision_start_token, writer.vision_end_token = "<|vision_start|>", "<|vision_end|>"
    writer.image_processor = SimpleNamespace(merge_size=images.merge_size)
    sizes = SimpleNamespace(merge_size=images.merge_size, temporal_patch_size=images.temporal_patch_size)
    writer.video_processor = sizes

    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pixels: dict[str, list[Any]] = {"image": [], "video": []}
    grids: dict[str, list[Any]] = {"image": [], "video": []}
    seconds, kinds = [], []
    for kind, value in media_of(messages):
        if kind == "image":
            out = images(value, return_tensors="pt")
            grids["image"].append(out["image_grid_thw"][0])
            pixels["image"].append(out["pixel_values"])
            expanded = writer.replace_image_token({"image_grid_thw": grids["image"]}, len(grids["image"]) - 1)
        else:
            patches, grid = video_patches(value, images, video_settings, clip_size)
            grids["video"].append(grid)
            pixels["video"].append(patches)
            metadata = video_metadata(value)
            seconds.append(images.temporal_patch_size / metadata.sampled_fps)
            inputs = {"video_grid_thw": [grid], "video_metadata": [metadata]}
            expanded = writer.replace_video_token(inputs, 0)
        kinds.append(kind)
        # a letter that no text has, so that what is put in is not found again
        text = text.replace(f"<|{kind}_pad|>", expanded.replace("_pad|>", "_PAD|>"), 1)
    token_ids = tokenizer(text.replace("_PAD|>", "_pad|>")).input_ids

    types = torch.tensor([[_token_type(token, hf.config) for token in token_ids]])
    inputs = {"input_ids": torch.tensor([token_ids]), "mm_token_type_ids": types}
    made: dict[str, Iterator[np.ndarray]] = {}
    with torch.no_grad():
        for kind, ours, theirs in (("image", "pixel_values", "image"), ("video", "pixel_values_videos", "video")):
            if pixels[kind]:
                inputs[ours], inputs[f"{theirs}_grid_thw"] = torch.cat(pixels[kind]), torch.stack(grids[kind])
                features = getattr(hf, f"get_{kind}_features")(inputs[ours], inputs[f"{theirs}_grid_thw"])
                levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
                made[kind] = iter([torch.cat(parts, dim=-1).numpy() for parts in zip(*levels, strict=True)])
        if seconds and hf.config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
        logits = hf(**inputs).logits[0].numpy()
        answer = hf.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(token_ids) :].numpy()
    width = hf.config.text_config.hidden_size
    mm_tokens = np.concatenate([next(made[kind]) for kind in kinds]) if kinds else np.zeros((0, width), np.float32)
    return Reference(np.asarray(token_ids), mm_tokens, logits, answer)


def _token_type(token: int, config: Any) -> int:
    return {config.image_token_id: 1, config.video_token_id: 2}.get(token, 0)


def video_metadata(video: Video) -> Any:
    """The metadata HF would have read with these frames."""
    from transformers.video_utils import VideoMetadata

    indices = [round(float(t) * video.fps) for t in video.timestamps_s]
    step = indices[1] - indices[0]
    return VideoMetadata(len(indices) * step, fps=video.fps, frames_indices=indices)


def video_patches(video: Video, images: Any, settings: dict[str, Any], clip_size: Any) -> tuple[Any, Any]:
    """HF's patches and grid of a video whose frames are resized here, as torchvision would."""
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    frames, height, width, _ = video.frames.shape
    factor = images.patch_size * images.merge_size
    limits = settings["size"]["shortest_edge"], settings["size"]["longest_edge"]
    if clip_size is None:
        height, width = smart_resize(height, width, factor, *limits)
    else:
        height, width = clip_size(frames, height, width, images.temporal_patch_size, factor, *limits)
    small = [resized(frame, height, width, Image.Resampling.BICUBIC) for frame in video.frames]
    scaled = (np.stack(small).astype(np.float32) / 255 - np.float32(images.image_mean)) / np.float32(images.image_std)
    tensor = torch.tensor(scaled.astype(np.float32)).permute(0, 3, 1, 2)[None]
    patches, *grid = Qwen3VLVideoProcessor.patchify(
        None, tensor, images.patch_size, images.merge_size, images.temporal_patch_size
    )
    return patches[0], torch.tensor(grid)

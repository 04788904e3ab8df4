"""The stack that the EPD paper was measured with, as times of its work: MiniCPM-V 2.6 on A100 GPUs, calibrated on a few
points of the paper. Everything else the paper states is left to be predicted.

The points: a request with two 4K pictures takes 1.339 s of encode and prefill, each further picture 0.47 s more (the
calibration that comes with the paper's code); with IRP its first token takes 0.92 s (table 4); without role switching
the time per token of table 6 is 0.12 s. They give

    encode of a picture            e
    prefill of a step              p0 + p1 * pictures
    e + p1 = 0.47,  p0 = 1.339 - 2 * 0.47,  e + p0 + 2 * p1 = 0.92  (two pictures on two encoders at once)

That p0 is taken once for all prompts of a step is what the runs say that had several in one: 3 requests a second have
their first tokens after 1.3 s from a single prefill instance (table 6), which could not even keep up if each took p0,
and five encoders with two prefill instances beat seven that do both (the offline run).
"""

import dataclasses
import math

from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.work import Decode, Encode, Prefill, Work

TWO_PICTURES_S = 1.339
FURTHER_PICTURE_S = 0.47
TWO_PICTURES_IRP_S = 0.92
EIGHT_FRAMES_S = 0.42
CLIP_S, CLIPS_PROMPT_S = 0.033, 0.6
TEXT_TOKENS = 22
PICTURE_TOKENS = 640  # ten slices of 64 tokens
SLICES = 10


@dataclasses.dataclass(frozen=True)
class PaperStack:
    """Seconds that work takes; call it with a work item and the instance that runs it.

    Attributes:
        slice_s: encode of a slice of a picture, or of a frame.
        unit_slices: slices of an encode unit: ten where whole pictures are shared out among encoders, as in the paper's
            stack.
        prompt_s: of a prefill step that ends prompts, however many. token_s: for each token besides.
        decode_s: a decode step. row_s: for each sequence in it besides, by the time per token of table 6.
        move_s: any move.
    """

    slice_s: float
    prompt_s: float
    token_s: float
    decode_s: float = 0.02
    row_s: float = 0.0032
    move_s: float = 0.005
    unit_slices: int = 1

    @classmethod
    def calibrated(cls) -> "PaperStack":
        """From the points above."""
        prompt_s = TWO_PICTURES_S - 2 * FURTHER_PICTURE_S
        per_picture_s = TWO_PICTURES_IRP_S - prompt_s - FURTHER_PICTURE_S
        return cls(
            slice_s=(FURTHER_PICTURE_S - per_picture_s) / SLICES,
            prompt_s=prompt_s,
            token_s=per_picture_s / PICTURE_TOKENS,
        )

    @classmethod
    def for_videos(cls) -> "PaperStack":
        """Frames are small: what a prompt with 4K pictures takes besides its tokens is mostly the pictures' resizing.
        From one more point, DistServe's first token about eight frames (table 1)."""
        stack = cls.calibrated()
        tokens = TEXT_TOKENS + 8 * PICTURE_TOKENS // SLICES
        prompt_s = EIGHT_FRAMES_S - 8 * stack.slice_s - tokens * stack.token_s
        return dataclasses.replace(stack, prompt_s=prompt_s)

    @classmethod
    def for_audio(cls) -> "PaperStack":
        """Ultravox-v0.3: seconds of a clip and of a prompt with 24 of them, chosen by hand so that the attainment of
        table 7 at a request a second comes out about as stated; nothing in the paper says them."""
        return dataclasses.replace(cls.calibrated(), slice_s=CLIP_S, prompt_s=CLIPS_PROMPT_S, token_s=0.0, row_s=0.001)

    def __call__(self, work: Work, instance: InstanceSpec) -> float:
        match work:
            case Encode():
                rounds = math.ceil(len(work.units) / max(1, instance.encode_width))
                return self.slice_s * self.unit_slices * rounds
            case Prefill():
                tokens = sum(chunk.length for chunk in work.chunks)
                return self.prompt_s * any(chunk.is_last for chunk in work.chunks) + self.token_s * tokens
            case Decode():
                return self.decode_s + self.row_s * len(work.sequences)
        return self.move_s

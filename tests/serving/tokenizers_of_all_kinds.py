"""Small tokenizers of every kind that text is streamed from, with tokens that are no character, or a strange one."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.models.tiny import tiny_tokenizer

PIECES = ["▁", "▁▁", "a", "▁a", "b ", " c", "é", "日", "\ufffd", "▁\ufffd", "th", "the", "<", ">", "\n", "."]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("é▁"), AddedToken("\n\n")])
    return tokenizer


def byte_level() -> Tokenizer:
    """GPT-2's kind (Qwen, Llama 3)."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("é"), AddedToken("\ufffd"), AddedToken("ĠĠ")])
    return tokenizer


def with_pieces(decoder: decoders.Decoder | None, pieces: list[str] = PIECES + BYTES) -> Tokenizer:
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h")] if "t" in vocab else [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    if decoder is not None:
        tokenizer.decoder = decoder
    return _with_added(tokenizer)


def gemma() -> Tokenizer:
    """Byte fallback."""
    return with_pieces(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def llama(start: int = 1) -> Tokenizer:
    """Byte fallback, and a space at the beginning of a text is dropped (Llama 2, Mistral, InternLM2)."""
    strip = decoders.Strip(" ", start, 0)
    return with_pieces(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]))


def metaspace(prepend_scheme: str) -> Tokenizer:
    """No bytes; spaces written as U+2581."""
    return with_pieces(decoders.Metaspace(prepend_scheme=prepend_scheme))


def bare() -> Tokenizer:
    """No decoder at all."""
    return with_pieces(None)


def rewriting() -> Tokenizer:
    """Steps of other kinds, for single tokens."""
    steps = [decoders.Replace(Regex("▁+"), "_"), decoders.Strip("b", 1, 1), decoders.ByteFallback()]
    return with_pieces(decoders.Sequence(steps))


KINDS: dict[str, Tokenizer] = {
    "byte-level": byte_level(),
    "gemma": gemma(),
    "llama": llama(),
    "two spaces": llama(start=2),
    "metaspace": metaspace("always"),
    "metaspace, first": metaspace("first"),
    "metaspace, never": metaspace("never"),
    "bare": bare(),
    "rewriting": rewriting(),
}

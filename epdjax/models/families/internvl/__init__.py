"""InternVL as transformers writes it."""

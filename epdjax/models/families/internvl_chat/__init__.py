"""InternVL2 and 2.5 as their authors write them."""

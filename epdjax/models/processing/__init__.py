"""From messages and media to token ids and encode units, on the host; a file per family."""

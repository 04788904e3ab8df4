"""Media of a request: found, bounded, decoded."""

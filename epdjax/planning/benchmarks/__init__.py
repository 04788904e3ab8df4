"""What this engine and its parts take, measured on the machine at hand."""

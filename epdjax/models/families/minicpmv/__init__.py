"""MiniCPM-V 2.6."""

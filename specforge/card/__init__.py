"""The README.md that goes with a checkpoint."""

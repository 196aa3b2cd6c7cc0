"""Losses, the unrolled training step, the loop that resumes."""

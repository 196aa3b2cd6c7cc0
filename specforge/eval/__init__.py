"""Speculative decoding of held-out prompts, and the statistics of what was accepted."""

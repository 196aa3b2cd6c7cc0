"""The target: made here when it is the tiny one, loaded and read (features, logits) when it is any."""

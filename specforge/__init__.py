"""SpecForge OPD: EAGLE-3 draft models trained by on-policy distillation."""

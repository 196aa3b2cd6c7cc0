"""Figures, the HTML page and the summary table."""

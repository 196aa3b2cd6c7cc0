"""The EAGLE-3 draft: its layer, its attention over unrolled steps, its file layout."""

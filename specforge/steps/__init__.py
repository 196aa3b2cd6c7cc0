"""One function a Snakemake rule, of the same name: typed arguments in, files out."""

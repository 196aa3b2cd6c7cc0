"""What a change makes stale, line by line of the design's table, on a workspace that really finished."""

import os
import resource
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from snakemake.cli import main as snakemake_main  # noqa: F401  fails early where Snakemake is broken

from workspace import CHATS, REPOSITORY, clone, make_workspace, plan, snakemake

PLANNING_SECONDS = 4.0
ABLATIONS = ("baseline", "rkl-only", "mixed", "full-opd")
RUNS = {"run_training": 12, "evaluate": 12, "report": 1}
AFTER_REGENERATION = {"regenerate_dataset": 1, "preprocess_dataset": 1, **RUNS}

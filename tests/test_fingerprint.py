"""Which rules an edit of which module makes stale."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import REPOSITORY

from specforge.fingerprint import code_version

RULES = sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py") if path.stem != "deploy_app")  # runs no step
ALL_STEPS = set(RULES)


def copy_package(folder: Path) -> Path:
    for part in ("scripts", "specforge"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_package(tmp_path_factory.mktemp("package"))


def stale(package: Path, folder: Path, edit: Callable[[Path], object]) -> set[str]:
    """The rules whose code is another after `edit` of a copy in `folder`."""
    edited = shutil.copytree(package, folder / "edited")
    edit(edited)
    return {rule for rule in RULES if code_version(rule, package) != code_version(rule, edited)}


def append(module: str, text: str) -> Callable[[Path], object]:
    def edit(root: Path) -> None:
        path = root / module
        path.write_text(path.read_text() + text)

    return edit


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("specforge/train/losses.py", {"run_training"}),
        ("specforge/train/optim.py", {"run_training", "train_tiny_target"}),
        ("specforge/model/attention.py", {"run_training"}),
        ("specforge/model/draft.py", {"run_training", "evaluate"}),
        ("specforge/data/chat.py", {"preprocess_dataset", "evaluate"}),
        ("specforge/data/template.py", {"regenerate_dataset", "regenerate_shard", "preprocess_dataset", "evaluate"}),
        ("specforge/data/cache.py", {"preprocess_dataset", "run_training", "train_tiny_target"}),
        ("specforge/data/split.py", {"prep_dataset"}),
        ("specforge/eval/sampling.py", {"evaluate"}),
        ("specforge/regenerate/http.py", {"regenerate_dataset", "regenerate_shard"}),
        ("specforge/target/tiny.py", {"train_tiny_target"}),
        ("specforge/report/page.py", {"report"}),
        ("specforge/report/report.css", {"report"}),
        ("specforge/report/report.html.jinja", {"report"}),
        ("scripts/evaluate.py", {"evaluate"}),
        ("specforge/files.py", ALL_STEPS),
        ("specforge/config/steps.py", set()),
        ("specforge/cloud/app.py", set()),
        ("specforge/progress.py", set()),
    ],
)
def test_an_edit_makes_stale_the_rules_that_run_the_module(
    package: Path, tmp_path: Path, module: str, expected: set[str]
):
    assert stale(package, tmp_path, append(module, "\nEDITED = 1\n")) == expected


def test_comments_docstrings_layout_and_dates_make_nothing_stale(package: Path, tmp_path: Path):
    def edit(root: Path) -> None:
        for path in root.rglob("*.py"):
            source = re.sub(r'^( *)"""(?=[A-Z])', r'\1"""Said otherwise. ', path.read_text(), flags=re.MULTILINE)
            path.write_text("# a remark\n\n" + source.replace("\ndef ", "\n\n# and another\n\ndef "))

    assert stale(package, tmp_path, edit) == set()


def test_a_module_imported_inside_a_function_counts(tmp_path: Path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "specforge" / "steps").mkdir(parents=True)
    (tmp_path / "scripts" / "toy.py").write_text("from specforge.steps.toy import toy\n")
    (tmp_path / "specforge" / "steps" / "toy.py").write_text("def toy():\n    import specforge.deep\n")
    (tmp_path / "specforge" / "deep.py").write_text("A = 1\n")
    edit = append("specforge/deep.py", "B = 2\n")
    before = code_version("toy", shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-before")))
    edit(tmp_path)
    assert code_version("toy", tmp_path) != before


def test_the_version_does_not_depend_on_where_the_package_lies(package: Path, tmp_path: Path):
    elsewhere = shutil.copytree(package, tmp_path / "elsewhere")
    assert [code_version(rule, elsewhere) for rule in RULES] == [code_version(rule, package) for rule in RULES]

"""The code a rule really runs, as a hash, so that editing one module reruns exactly the rules that use it."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Left out: options reach a rule as params; where a step runs and what is told of it do not change what it makes.
NOT_FOLLOWED = (
    "specforge/config/",
    "specforge/cloud/",
    "specforge/card/",
    "specforge/log.py",
    "specforge/train/cost.py",
    "specforge/train/tracking.py",
    "specforge/progress.py",
    "specforge/provenance.py",
)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _canonical(path: Path) -> str:
    """Source without comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_remark(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_remark(line: ast.stmt) -> bool:
    """A docstring, also one below an attribute."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    """Files of this package that `path` imports anywhere, also inside functions, and their templates."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "specforge":
                stem = root.joinpath(*name.split("."))
                candidates = (stem.with_suffix(".py"), stem / "__init__.py")
                yield from (file for file in candidates if file.is_file())


def code_version(rule: str, root: Path = ROOT) -> str:
    """12 hex digits over `scripts/<rule>.py`, `specforge/steps/<rule>.py` and all that they import from here.

    Comments, docstrings, layout, file dates and modules that the rule does not import do not count. A
    `*.jinja` or `*.css` file beside a counted module counts too. Third-party versions do not: a manifest
    records them, and `snakemake --forcerun` acts on them (on Modal after `python -m specforge.cloud forget`).
    """
    return _version([root / "scripts" / f"{rule}.py", root / "specforge" / "steps" / f"{rule}.py"], root)


def step_version(rule: str, root: Path = ROOT) -> str:
    """The same without the script: what a container can see, which holds the package alone."""
    return _version([root / "specforge" / "steps" / f"{rule}.py"], root)


def _version(queue: list[Path], root: Path) -> str:
    sources: dict[str, str] = {}
    while queue:
        path = queue.pop()
        name = path.relative_to(root).as_posix()
        if name in sources or name.startswith(NOT_FOLLOWED):
            continue
        sources[name] = _canonical(path)
        queue.extend(_imported_files(path, root))
        for asset in sorted(path.parent.glob("*.jinja")) + sorted(path.parent.glob("*.css")):
            sources[asset.relative_to(root).as_posix()] = asset.read_text(encoding="utf-8")
    text = "\n".join(f"{name}\n{sources[name]}" for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

"""The app on Modal, deployed when the code that it contains changed."""

import logging
import sys
from pathlib import Path
from typing import Any

import modal

from specforge.cloud.errors import explain
from specforge.cloud.package import package_digest
from specforge.cloud.places import STATE
from specforge.files import digest, locked, read_json, write_json

log = logging.getLogger("specforge")

LOCK = Path(__file__).resolve().parents[2] / "constraints.txt"


def contained() -> str:
    """Names what a deployed app is made of: the package, the lock file and Modal's client."""
    return digest(package_digest(), LOCK.read_text() if LOCK.is_file() else "", modal.__version__)


def receipt(place: dict[str, Any]) -> Path:
    return STATE / "deployed" / f"{place['app']}-{place['environment'] or 'default'}.json"


def ensure_deployed(place: dict[str, Any], output: str | None = None, anew: bool = False) -> None:
    """Deploys unless this code is the deployed one; one process at a time, the others find it done.

    `output`: where the deploying rule wants the receipt too. Raises UserError in Modal's words.
    """
    path = receipt(place)
    with locked(path.with_suffix(".lock")):
        known = read_json(path) if path.is_file() and not anew else {}
        if known.get("contained") != contained():
            _deploy(place)
            write_json(path, {"app": place["app"], "environment": place["environment"], "contained": contained()})
    if output:
        write_json(Path(output), read_json(path))


def _deploy(place: dict[str, Any]) -> None:
    from specforge.cloud.app import app

    where = f"environment {place['environment']}" if place["environment"] else "the profile's environment"
    log.info("deploying app %s to %s; new images take minutes to build", place["app"], where)
    try:
        if sys.stderr.isatty():
            with modal.enable_output():
                app.deploy(name=place["app"], environment_name=place["environment"])
        else:
            app.deploy(name=place["app"], environment_name=place["environment"])
    except Exception as error:
        raise explain(error, f"deploying app {place['app']}") from error
    log.info("deployed")

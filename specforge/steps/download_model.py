"""Have a target from the hub or a local folder ready, and say in a receipt which one exactly."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from specforge.config.paths import MODEL_FILES
from specforge.errors import UserError
from specforge.files import digest, sha256_file, write_json


def download_model(*, model: str, skip_download: bool, output: str) -> dict:
    """Downloads a hub model into the Hugging Face cache (continuing a broken download), or takes a folder in place.

    Raises UserError when the model cannot be had or lacks config.json or safetensors weights.
    """
    folder = Path(model)
    if folder.is_dir():
        receipt = {"model": model, "revision": None, "sha256": _content_digest(folder), "source": "local"}
    else:
        folder = _snapshot(model, skip_download)
        revision = folder.name
        receipt = {"model": model, "revision": revision, "sha256": digest(model, revision), "source": "hub"}
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"target_model: {folder} holds no config.json with *.safetensors weights; name another model.")
    write_json(Path(output), receipt)
    return receipt


def _snapshot(model: str, skip_download: bool) -> Path:
    try:
        return Path(snapshot_download(model, allow_patterns=list(MODEL_FILES), local_files_only=skip_download))
    except RepositoryNotFoundError:
        raise UserError(
            f"target_model: {model!r} is neither a folder here nor a model on the hub that this account may read; "
            "correct it, or set HF_TOKEN if it is gated."
        ) from None
    except LocalEntryNotFoundError:
        hint = "skip_download is true; set it to false" if skip_download else "the hub cannot be reached; try again"
        raise UserError(f"target_model: {model!r} is not in the Hugging Face cache and {hint}.") from None
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise UserError(f"target_model: {model!r} could not be downloaded: {error}.") from None


def _content_digest(folder: Path) -> str:
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return digest([(path.name, sha256_file(path)) for path in files])

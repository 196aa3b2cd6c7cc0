"""Lays out a container's files as its function's definition says, and starts its process."""

import asyncio
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from modal_proto import api_pb2 as pb

from loopback import views
from loopback.namespace import Bind, command
from loopback.state import App, Backend, Container, Function
from loopback.wire import CALLER_HEADER, ENVIRONMENT

ARGUMENTS = "/loopback-arguments"  # where the entrypoint finds its arguments


async def launch(backend: Backend, container: Container) -> None:
    definition, root = container.definition, container.folder / "root"
    root.mkdir(parents=True)
    environment, folder = _from_image(backend, definition.image_id, root)
    for mount in definition.mount_ids:
        _unpack(backend, mount, root)
    binds = []
    for mount in definition.volume_mounts:
        volume = backend.volumes[mount.volume_id]
        view = views.make(volume.root, container.folder / volume.id)
        container.views[volume.id] = view
        binds.append(Bind(view.root, mount.mount_path, mount.read_only))
    for secret in definition.secret_ids:
        environment |= backend.secrets[secret][1]
    (root / ARGUMENTS.lstrip("/")).write_bytes(_arguments(backend, container).SerializeToString())
    environment |= {
        "PYTHONPATH": "/root",
        "MODAL_SERVER_URL": backend.url,
        "MODAL_OVERRIDE_HEADERS": f"{CALLER_HEADER}:{container.id}",
        "MODAL_IS_REMOTE": "1",
        "MODAL_TASK_ID": container.id,
        "MODAL_IMAGE_ID": definition.image_id,
        "MODAL_ENVIRONMENT": ENVIRONMENT,
        "MODAL_CONTAINER_ARGUMENTS_PATH": ARGUMENTS,
    }
    container.process = await asyncio.create_subprocess_exec(
        *command(root, binds, folder, [sys.executable, "-m", "modal._container_entrypoint"]),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


def layout(backend: Backend, app: App, running: Function | None = None) -> pb.AppLayout:
    """What an app consists of, as its containers and its next deployment are told; `running` may be a variant."""
    result = pb.AppLayout(function_ids=app.functions)
    functions = {function: backend.functions[function] for function in app.functions.values()}
    if running is not None:
        functions[running.id] = running
    for function in functions.values():
        result.objects.add(object_id=function.id, function_handle_metadata=function.handle)
    needed = (d.object_id for f in functions.values() for d in f.definition.object_dependencies)
    for name in dict.fromkeys(needed):
        if name in backend.volumes:
            result.objects.add(object_id=name, volume_metadata=backend.volumes[name].metadata)
        elif name not in functions:
            result.objects.add(object_id=name)
    return result


def recipe(backend: Backend, image_id: str) -> Iterator[pb.Image]:
    """An image's layers, the lowest first."""
    if image := backend.images.get(image_id):
        for base in image.base_images:
            yield from recipe(backend, base.image_id)
        yield image


def _arguments(backend: Backend, container: Container) -> pb.ContainerArguments:
    function = container.function
    return pb.ContainerArguments(
        task_id=container.id,
        function_id=function.id,
        app_id=function.app.id,
        function_def=container.definition,
        environment_name=ENVIRONMENT,
        app_layout=layout(backend, function.app, function),
    )


def _from_image(backend: Backend, image_id: str, root: Path) -> tuple[dict[str, str], str]:
    """Environment and working folder, of a recipe's commands that need no build; copies the files it adds."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **backend.container_env,
    }
    folder = "/root"
    for image in recipe(backend, image_id):
        for line in image.dockerfile_commands:
            verb, _, rest = line.partition(" ")
            if verb == "ENV":
                environment |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif verb == "WORKDIR":
                folder = shlex.split(rest)[0]
            elif verb == "COPY" and image.context_mount_id and not rest.startswith("--from"):
                _unpack(backend, image.context_mount_id, root, shlex.split(rest)[-1])
    return environment, folder


def _unpack(backend: Backend, mount_id: str, root: Path, below: str = "/") -> None:
    for file in backend.mounts[mount_id]:
        target = root / str(PurePosixPath(below, file.filename.lstrip("/"))).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(backend.folder / "contents" / file.sha256_hex, target)

"""The RPCs of volumes, of version 2 only, for clients (up, down, list, remove) and for containers (commit, reload)."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from loopback import views
from loopback.state import Backend, Container, View, Volume, not_found
from loopback.wire import ENVIRONMENT

BLOCK = 8 * 1024 * 1024  # what the client hashes, sends and fetches at a time


class VolumeRpcs:
    """Committed trees are plain folders below `<folder>/volumes`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.blocks = backend.folder / "blocks"
        self.blocks.mkdir(parents=True)

    def VolumeGetOrCreate(self, request: pb.VolumeGetOrCreateRequest) -> pb.VolumeGetOrCreateResponse:
        """Where a request leaves the version open, the client goes by the one in this answer."""
        if request.version == pb.VOLUME_FS_VERSION_V1:
            raise self.backend.unserved("VolumeGetOrCreate of version 1")
        name, kind = request.deployment_name, request.object_creation_type
        volume = next((v for v in self.backend.volumes.values() if v.name == name), None)
        if volume is None and kind == pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            volume = Volume(self.backend.new_id("vo"), name, self.backend.folder / "volumes" / name)
            volume.root.mkdir(parents=True)
            self.backend.volumes[volume.id] = volume
        elif volume is None and kind == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise not_found(f"Volume '{name}' not found in environment '{ENVIRONMENT}'")
        elif kind not in {pb.OBJECT_CREATION_TYPE_UNSPECIFIED, pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING}:
            raise self.backend.unserved("VolumeGetOrCreate of an unnamed volume")
        return pb.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=pb.VOLUME_FS_VERSION_V2, metadata=volume.metadata
        )

    def VolumePutFiles2(self, request: pb.VolumePutFiles2Request) -> pb.VolumePutFiles2Response:
        """Says which blocks it lacks; asked again after their upload, puts all files in place."""
        volume, reply = self.backend.volumes[request.volume_id], pb.VolumePutFiles2Response()
        for index, file in enumerate(request.files):
            if request.disallow_overwrite_existing_files and self._inside(volume, file.path).exists():
                raise GRPCError(Status.ALREADY_EXISTS, f"{file.path}: already exists")
            for number, block in enumerate(file.blocks):
                name = block.contents_sha256.hex()
                if not (self.blocks / name).exists():
                    url = f"{self.backend.http_url}/block/{name}"
                    reply.missing_blocks.add(file_index=index, block_index=number, put_url=url)
        if not reply.missing_blocks:
            for file in request.files:
                self._put(self._inside(volume, file.path), file)
        return reply

    def _put(self, target: Path, file: pb.VolumePutFiles2Request.File) -> None:
        """Blocks come without the zeros at their end, which the file's size restores."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.uploading")
        with partial.open("wb") as out:
            for number, block in enumerate(file.blocks):
                out.seek(number * BLOCK)
                out.write((self.blocks / block.contents_sha256.hex()).read_bytes())
            out.truncate(file.size)
        partial.chmod(file.mode or 0o644)
        partial.replace(target)

    def VolumeGetFile2(self, request: pb.VolumeGetFile2Request) -> pb.VolumeGetFile2Response:
        volume = self.backend.volumes[request.volume_id]
        path = self._inside(volume, request.path)
        if not path.is_file():
            raise not_found(f"{request.path}: no such file in volume '{volume.name}'")
        size = path.stat().st_size
        end = min(size, request.start + request.len) if request.len else size
        where = f"{self.backend.http_url}/file/{volume.id}"
        urls, start = [], request.start
        while start < end:
            stop = min(end, (start // BLOCK + 1) * BLOCK)
            urls.append(f"{where}/{start}/{stop - start}/{path.relative_to(volume.root)}")
            start = stop
        return pb.VolumeGetFile2Response(get_urls=urls, size=size, start=request.start, len=end - request.start)

    async def VolumeListFiles2(self, request: pb.VolumeListFiles2Request) -> AsyncIterator[pb.VolumeListFiles2Response]:
        volume = self.backend.volumes[request.volume_id]
        path = self._inside(volume, request.path)
        if not path.exists():
            raise not_found(f"{request.path}: no such file or directory")
        found = [path] if path.is_file() else sorted(path.rglob("*") if request.recursive else path.iterdir())
        yield pb.VolumeListFiles2Response(entries=[entry(p, volume) for p in found])

    def VolumeRemoveFile2(self, request: pb.VolumeRemoveFile2Request) -> Empty:
        path = self._inside(self.backend.volumes[request.volume_id], request.path)
        if not path.exists():
            raise not_found(f"{request.path}: no such file or directory")
        if not path.is_dir():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory, and removal is not recursive")
        return Empty()

    def VolumeCommit(self, request: pb.VolumeCommitRequest, caller: Container) -> pb.VolumeCommitResponse:
        """What the container changed goes to the committed tree, and what others committed comes to the container."""
        volume, view = self._mounted(request.volume_id, caller)
        views.commit(view, volume.root)
        views.reload(view, volume.root)
        return pb.VolumeCommitResponse(skip_reload=True)

    def VolumeReload(self, request: pb.VolumeReloadRequest, caller: Container) -> Empty:
        """Commits nothing: Modal may or may not, so no code should rely on it."""
        volume, view = self._mounted(request.volume_id, caller)
        if open_files := views.open_files(view, caller.process.pid):
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"there are open files preventing the operation: {', '.join(open_files)}"
            )
        views.reload(view, volume.root)
        return Empty()

    def _mounted(self, volume_id: str, caller: Container) -> tuple[Volume, View]:
        if caller is None or volume_id not in caller.views:
            raise GRPCError(Status.FAILED_PRECONDITION, "The volume is not mounted in a container of the caller")
        return self.backend.volumes[volume_id], caller.views[volume_id]

    def _inside(self, volume: Volume, path: str) -> Path:
        parts = PurePosixPath("/", path).parts[1:]
        if ".." in parts:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{path} leads out of the volume")
        return volume.root.joinpath(*parts)


def entry(path: Path, volume: Volume) -> pb.FileEntry:
    kind = pb.FileEntry.FILE
    if path.is_symlink():
        kind = pb.FileEntry.SYMLINK
    elif path.is_dir():
        kind = pb.FileEntry.DIRECTORY
    status = path.lstat()
    name = str(path.relative_to(volume.root))
    return pb.FileEntry(path=name, type=kind, size=status.st_size, mtime=int(status.st_mtime))

"""The RPCs of what an app refers to: environment, secrets, mounts, images, and payloads too large to be sent inline."""

import hashlib
import platform
import shutil
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from loopback.state import Backend, not_found
from loopback.wire import ENVIRONMENT

IMAGE_BUILDER = "2025.06"
IMAGE_METADATA = pb.ImageMetadata(image_builder_version=IMAGE_BUILDER, python_version_info=platform.python_version())


class ObjectRpcs:
    """Named after the protocol's RPCs, as in the other modules."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.contents = backend.folder / "contents"  # of mounts, by SHA-256
        self.blobs = backend.folder / "blobs"
        self.contents.mkdir(parents=True)
        self.blobs.mkdir()

    def ClientHello(self, request: Empty) -> pb.ClientHelloResponse:
        return pb.ClientHelloResponse()

    def EnvironmentGetOrCreate(self, request: pb.EnvironmentGetOrCreateRequest) -> pb.EnvironmentGetOrCreateResponse:
        settings = pb.EnvironmentSettings(image_builder_version=IMAGE_BUILDER)
        return pb.EnvironmentGetOrCreateResponse(
            environment_id="en-LB000000", metadata=pb.EnvironmentMetadata(name=ENVIRONMENT, settings=settings)
        )

    def SecretGetOrCreate(self, request: pb.SecretGetOrCreateRequest) -> pb.SecretGetOrCreateResponse:
        if request.object_creation_type in {
            pb.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
            pb.OBJECT_CREATION_TYPE_EPHEMERAL,
        }:
            secret = self.backend.new_id("st")
            self.backend.secrets[secret] = ("", dict(request.env_dict))
            return pb.SecretGetOrCreateResponse(secret_id=secret)
        if request.object_creation_type != pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise self.backend.unserved("SecretGetOrCreate that creates a named secret")
        name = request.deployment_name
        if (secret := f"st-{name}") not in self.backend.secrets:
            raise not_found(
                f"Secret '{name}' not found in environment '{ENVIRONMENT}'. You can create it here: "
                f"https://modal.com/secrets/loopback/{ENVIRONMENT}/create?secret_name={name}"
            )
        if missing := set(request.required_keys) - self.backend.secrets[secret][1].keys():
            raise not_found(f"Secret '{name}' is missing key(s): {', '.join(sorted(missing))}")
        return pb.SecretGetOrCreateResponse(secret_id=secret)

    def MountBatchedCheckExistence(
        self, request: pb.MountBatchedCheckExistenceRequest
    ) -> pb.MountBatchedCheckExistenceResponse:
        missing = [name for name in request.sha256_hex_hashes if not (self.contents / name).exists()]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def MountPutFile(self, request: pb.MountPutFileRequest) -> pb.MountPutFileResponse:
        target = self.contents / request.sha256_hex
        kind = request.WhichOneof("data_oneof")
        if kind == "data":
            target.write_bytes(request.data)
        elif kind == "data_blob_id":
            shutil.copyfile(self.blobs / request.data_blob_id, target)
        return pb.MountPutFileResponse(exists=target.exists())

    def MountGetOrCreate(self, request: pb.MountGetOrCreateRequest) -> pb.MountGetOrCreateResponse:
        """A named mount (the client's own package) stays empty: this machine's Python has the client."""
        listing = sorted(f"{file.filename}\0{file.sha256_hex}" for file in request.files)
        checksum = hashlib.sha256("\n".join([request.deployment_name, *listing]).encode()).hexdigest()
        mount = f"mo-{checksum[:20]}"
        self.backend.mounts[mount] = list(request.files)
        return pb.MountGetOrCreateResponse(
            mount_id=mount, handle_metadata=pb.MountHandleMetadata(content_checksum_sha256_hex=checksum)
        )

    def ImageGetOrCreate(self, request: pb.ImageGetOrCreateRequest) -> pb.ImageGetOrCreateResponse:
        """Without a result, so that the client waits for the build in `ImageJoinStreaming`."""
        image = "im-" + hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:20]
        self.backend.images[image] = request.image
        return pb.ImageGetOrCreateResponse(image_id=image)

    async def ImageJoinStreaming(
        self, request: pb.ImageJoinStreamingRequest
    ) -> AsyncIterator[pb.ImageJoinStreamingResponse]:
        """Builds nothing, and fails when a test has asked for it."""
        result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
        if self.backend.controls.fail_image_builds is not None:
            failure = pb.GenericResult.GENERIC_STATUS_FAILURE
            result = pb.GenericResult(status=failure, exception=self.backend.controls.fail_image_builds)
        yield pb.ImageJoinStreamingResponse(result=result, eof=True, metadata=IMAGE_METADATA)

    def BlobCreate(self, request: pb.BlobCreateRequest) -> pb.BlobCreateResponse:
        blob = self.backend.new_id("bl")
        urls = pb.UploadUrlList(items=[f"{self.backend.http_url}/blob/{blob}"])
        return pb.BlobCreateResponse(blob_id=blob, blob_ids=[blob], upload_urls=urls)

    def BlobGet(self, request: pb.BlobGetRequest) -> pb.BlobGetResponse:
        if not (self.blobs / request.blob_id).exists():
            raise GRPCError(Status.NOT_FOUND, f"No blob {request.blob_id}")
        return pb.BlobGetResponse(download_url=f"{self.backend.http_url}/blob/{request.blob_id}")

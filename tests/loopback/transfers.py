"""The HTTP side: payloads, and the blocks of volume files, up and down."""

import hashlib

from aiohttp import web

from loopback.state import Backend
from loopback.wire import listen


class Transfers:
    """URLs as the RPCs hand them out, on a port of their own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.put("/blob/{name}", self.put_blob),
                web.get("/blob/{name}", self.get_blob),
                web.put("/block/{name}", self.put_block),
                web.get("/file/{volume}/{start}/{length}/{path:.+}", self.get_block),
            ]
        )
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        listening, self.backend.http_url = listen()
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def put_blob(self, request: web.Request) -> web.Response:
        """The client compares the tag with the MD5 of what it sent."""
        data = await request.read()
        (self.backend.folder / "blobs" / request.match_info["name"]).write_bytes(data)
        return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(self.backend.folder / "blobs" / request.match_info["name"])

    async def put_block(self, request: web.Request) -> web.Response:
        data, name = await request.read(), request.match_info["name"]
        if hashlib.sha256(data).hexdigest() != name:
            return web.Response(status=400, text="the block is not what its digest says")
        self.backend.controls.uploaded_bytes += len(data)
        (self.backend.folder / "blocks" / name).write_bytes(data)
        return web.Response(text=name)

    async def get_block(self, request: web.Request) -> web.Response:
        """Without the digest header that would let the client itself notice and fetch again."""
        asked = request.match_info
        path = self.backend.volumes[asked["volume"]].root / asked["path"]
        if not path.is_file():
            return web.Response(status=404, text="the file is gone")
        with path.open("rb") as file:
            file.seek(int(asked["start"]))
            data = file.read(int(asked["length"]))
        if self.backend.controls.corrupt_downloads > 0:
            self.backend.controls.corrupt_downloads -= 1
            data = bytes(byte ^ 0xFF for byte in data[:64]) + data[64:]
        return web.Response(body=data)

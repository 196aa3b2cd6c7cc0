"""The RPCs of apps and of the functions in them, and the lines that their containers wrote."""

import time
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as pb

from loopback.containers import Pool
from loopback.launch import layout
from loopback.state import App, Backend, Function, not_found
from loopback.wire import ENVIRONMENT

# What a definition may ask of Modal and this stand-in does not do: silently left out, it would mislead a test.
UNSERVED = {"is_class", "is_server", "webhook_config", "schedule", "batch_max_size", "max_concurrent_inputs"}
UNSERVED |= {"_experimental_group_size", "cloud_bucket_mounts", "proxy_id", "shared_volume_mounts"}


class AppRpcs:
    """Apps stay when the client goes, except those of an `app.run()`."""

    def __init__(self, backend: Backend, pool: Pool) -> None:
        self.backend = backend
        self.pool = pool

    def AppCreate(self, request: pb.AppCreateRequest) -> pb.AppCreateResponse:
        app = App(self.backend.new_id("ap"), request.description, request.app_state)
        self.backend.apps[app.id] = app
        return pb.AppCreateResponse(app_id=app.id, app_page_url=self._page(app))

    def AppGetByDeploymentName(self, request: pb.AppGetByDeploymentNameRequest) -> pb.AppGetByDeploymentNameResponse:
        app = self._deployed(request.name)
        return pb.AppGetByDeploymentNameResponse(app_id=app.id if app else "")

    def AppGetLayout(self, request: pb.AppGetLayoutRequest) -> pb.AppGetLayoutResponse:
        return pb.AppGetLayoutResponse(app_layout=layout(self.backend, self.backend.apps[request.app_id]))

    def AppHeartbeat(self, request: pb.AppHeartbeatRequest) -> Empty:
        return Empty()

    def AppPublish(self, request: pb.AppPublishRequest) -> pb.AppPublishResponse:
        """Puts all new definitions in force at once; running calls go on with what they started with."""
        app = self.backend.apps[request.app_id]
        app.functions = dict(request.function_ids)
        app.name, app.state = request.name or app.name, request.app_state or app.state
        for function in map(self.backend.functions.__getitem__, app.functions.values()):
            if function.created is not None:
                function.published, function.created = function.created, None
                function.version += 1
        self.backend.notify()
        return pb.AppPublishResponse(url=self._page(app), deployed_at=time.time())

    async def AppClientDisconnect(self, request: pb.AppClientDisconnectRequest) -> Empty:
        app = self.backend.apps[request.app_id]
        if app.state == pb.APP_STATE_EPHEMERAL:
            await self.pool.stop_app(app)
        return Empty()

    async def AppGetLogs(self, request: pb.AppGetLogsRequest) -> AsyncIterator[pb.TaskLogsBatch]:
        """New lines until `timeout`; an entry's id is its position in the app's log."""
        app, position = self.backend.apps[request.app_id], int(request.last_entry_id or 0)
        deadline = time.monotonic() + request.timeout
        while True:
            left = deadline - time.monotonic()
            await self.backend.until(lambda at=position: len(app.logs) > at or app.done, left)
            for batch in app.logs[position:]:
                position += 1
                if matches(batch, request):
                    yield batch
            if app.done:
                yield pb.TaskLogsBatch(app_done=True)
            if app.done or time.monotonic() >= deadline:
                return

    def FunctionPrecreate(self, request: pb.FunctionPrecreateRequest) -> pb.FunctionPrecreateResponse:
        function = self._function(request.existing_function_id, request.app_id, request.function_name)
        self._describe(function, request)
        return pb.FunctionPrecreateResponse(function_id=function.id, handle_metadata=function.handle)

    def FunctionCreate(self, request: pb.FunctionCreateRequest) -> pb.FunctionCreateResponse:
        if not request.HasField("function"):
            raise self.backend.unserved("FunctionCreate with a choice of GPUs")
        definition = request.function
        for name in UNSERVED & {field.name for field, _ in definition.ListFields()}:
            raise self.backend.unserved(f"FunctionCreate with {name}")
        function = self._function(request.existing_function_id, request.app_id, definition.function_name)
        function.created = definition
        self._describe(function, definition)
        return pb.FunctionCreateResponse(
            function_id=function.id,
            function=definition,
            function_data=data_of(definition),
            handle_metadata=function.handle,
        )

    def FunctionGet(self, request: pb.FunctionGetRequest) -> pb.FunctionGetResponse:
        app = self._deployed(request.app_name)
        if app is None:
            raise not_found(f"App '{request.app_name}' not found in environment '{ENVIRONMENT}'")
        if request.object_tag not in app.functions:
            raise not_found(f"Function '{request.object_tag}' not found in App '{request.app_name}'")
        function = self.backend.functions[app.functions[request.object_tag]]
        return pb.FunctionGetResponse(
            function_id=function.id, handle_metadata=function.handle, function=data_of(function.definition)
        )

    def FunctionBindParams(self, request: pb.FunctionBindParamsRequest) -> pb.FunctionBindParamsResponse:
        """`with_options`. Equal options give the same variant, and so the same containers."""
        if request.serialized_params:
            raise self.backend.unserved("FunctionBindParams with parameters")
        base = self.backend.functions[request.function_id]
        for other in self.backend.functions.values():
            if other.base is base and other.options == request.function_options:
                return pb.FunctionBindParamsResponse(bound_function_id=other.id, handle_metadata=other.handle)
        bound = Function(self.backend.new_id("fu"), base.app, base.name, base, request.function_options)
        bound.handle.CopyFrom(base.handle)
        self.backend.functions[bound.id] = bound
        return pb.FunctionBindParamsResponse(bound_function_id=bound.id, handle_metadata=bound.handle)

    def _page(self, app: App) -> str:
        return f"{self.backend.http_url}/apps/{app.id}"

    def _deployed(self, name: str) -> App | None:
        apps = self.backend.apps.values()
        return next((a for a in apps if a.name == name and a.state == pb.APP_STATE_DEPLOYED), None)

    def _function(self, existing: str, app_id: str, name: str) -> Function:
        if existing:
            return self.backend.functions[existing]
        function = Function(self.backend.new_id("fu"), self.backend.apps[app_id], name)
        self.backend.functions[function.id] = function
        return function

    def _describe(self, function: Function, source: pb.FunctionPrecreateRequest | pb.Function) -> None:
        function.handle = pb.FunctionHandleMetadata(
            function_name=function.name,
            function_type=source.function_type,
            function_schema=source.function_schema,
            supported_input_formats=source.supported_input_formats,
            supported_output_formats=source.supported_output_formats,
            definition_id=f"de-{function.id}",
            app_id=function.app.id,
        )


def matches(batch: pb.TaskLogsBatch, request: pb.AppGetLogsRequest) -> bool:
    """Whether a line is one of those asked for."""
    line = batch.items[0]
    wanted = (request.function_id, request.function_call_id, request.task_id, request.file_descriptor)
    found = (batch.function_id, line.function_call_id, batch.task_id, line.file_descriptor)
    return all(not want or want == have for want, have in zip(wanted, found, strict=True))


def data_of(definition: pb.Function) -> pb.FunctionData:
    """A definition in the other form that the client reads it in: there, one of several to choose from."""
    return pb.FunctionData(
        timeout_secs=definition.timeout_secs,
        autoscaler_settings=definition.autoscaler_settings,
        ranked_functions=[pb.FunctionData.RankedFunction(function=definition)],
    )

"""The RPCs of calls: made, retried, awaited and cancelled by clients, fetched and answered by containers."""

import asyncio
import time

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError
from modal_proto import api_pb2 as pb

from loopback.containers import Pool
from loopback.state import Backend, Call, CallState, Container, not_found

IDLE = 60.0  # seconds until a container without a call leaves, where its function does not say


class CallRpcs:
    """Of a call with one input, which is what `.spawn()` and `.remote()` make."""

    def __init__(self, backend: Backend, pool: Pool) -> None:
        self.backend = backend
        self.pool = pool

    def FunctionMap(self, request: pb.FunctionMapRequest) -> pb.FunctionMapResponse:
        if self.backend.controls.refuse_calls is not None:
            raise GRPCError(*self.backend.controls.refuse_calls)
        if len(request.pipelined_inputs) != 1:
            raise self.backend.unserved("FunctionMap of several inputs")
        function = self.backend.functions[request.function_id]
        call = Call(
            id=self.backend.new_id("fc"),
            input_id=self.backend.new_id("in"),
            function=function,
            input=request.pipelined_inputs[0].input,
            asynchronous=request.function_call_invocation_type == pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
            created_at=time.time(),
        )
        self.backend.calls[call.id] = call
        self.pool.enqueue(call)
        return pb.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            sync_client_retries_enabled=True,
            retry_policy=function.definition.retry_policy,
            pipelined_inputs=[pb.FunctionPutInputsResponseItem(input_id=call.input_id, input_jwt=call.id)],
        )

    def FunctionRetryInputs(self, request: pb.FunctionRetryInputsRequest) -> pb.FunctionRetryInputsResponse:
        """`.remote()` decides by itself about another attempt."""
        for item in request.inputs:
            call = self._call(item.input_jwt)
            call.output, call.retries = None, call.retries + 1
            self.pool.enqueue(call)
        return pb.FunctionRetryInputsResponse(input_jwts=[item.input_jwt for item in request.inputs])

    async def FunctionGetOutputs(self, request: pb.FunctionGetOutputsRequest) -> pb.FunctionGetOutputsResponse:
        call = self._call(request.function_call_id)
        output = await self.backend.until(lambda: call.output, request.timeout)
        outputs = [] if output is None else [output]
        return pb.FunctionGetOutputsResponse(outputs=outputs, num_unfinished_inputs=1 - len(outputs))

    def FunctionCallFromId(self, request: pb.FunctionCallFromIdRequest) -> pb.FunctionCallFromIdResponse:
        call = self._call(request.function_call_id)
        known = pb.FunctionCallHandleMetadata(app_id=call.function.app.id, function_id=call.function.id)
        return pb.FunctionCallFromIdResponse(function_call_id=call.id, num_inputs=1, metadata=known)

    def FunctionCallGetInfo(self, request: pb.FunctionCallGetInfoRequest) -> pb.FunctionCallGetInfoResponse:
        """How the stream of a call's log learns that the call is over."""
        call = self._call(request.function_call_id)

        def count(*states: CallState) -> pb.InputCategoryInfo:
            return pb.InputCategoryInfo(total=int(call.state in states))

        info = pb.FunctionCallInfo(
            function_call_id=call.id,
            created_at=call.created_at,
            total_inputs=1,
            pending_inputs=count(CallState.PENDING, CallState.RUNNING),
            succeeded_inputs=count(CallState.SUCCEEDED),
            failed_inputs=count(CallState.FAILED),
            timeout_inputs=count(CallState.TIMED_OUT),
            cancelled_inputs=count(CallState.CANCELLED),
        )
        return pb.FunctionCallGetInfoResponse(info=info)

    def FunctionCallCancel(self, request: pb.FunctionCallCancelRequest) -> Empty:
        if not request.terminate_containers:
            raise self.backend.unserved("FunctionCallCancel that leaves the container")
        self.pool.terminate(self._call(request.function_call_id))
        return Empty()

    def ContainerHello(self, request: Empty, caller: Container) -> Empty:
        return Empty()

    def ContainerHeartbeat(
        self, request: pb.ContainerHeartbeatRequest, caller: Container
    ) -> pb.ContainerHeartbeatResponse:
        return pb.ContainerHeartbeatResponse()

    async def FunctionGetInputs(
        self, request: pb.FunctionGetInputsRequest, caller: Container
    ) -> pb.FunctionGetInputsResponse:
        """The next call, or leave to go: when idle, when told to stop, and when a newer version was published."""
        caller.ready.set()
        function = caller.function

        def leaves() -> bool:
            return caller.stopping or caller.version != function.newest

        await self.backend.until(lambda: leaves() or function.queue, caller.definition.task_idle_timeout_secs or IDLE)
        if leaves() or not function.queue:
            caller.stopping = True
            return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])
        call = function.queue.popleft()
        self.pool.assign(call, caller)
        kind = pb.FUNCTION_CALL_INVOCATION_TYPE_SYNC
        if call.asynchronous:
            kind = pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        item = pb.FunctionGetInputsItem(
            input_id=call.input_id,
            input=call.input,
            function_call_id=call.id,
            function_call_invocation_type=kind,
            retry_count=call.retries,
        )
        return pb.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: pb.FunctionPutOutputsRequest, caller: Container) -> Empty:
        await asyncio.sleep(0.01)  # lets what it printed before get into the log first
        for item in request.outputs:
            call = caller.call
            # What a container says of its interrupt is no result: the call starts over once it is gone.
            interrupted = caller.lost and item.result.status != pb.GenericResult.GENERIC_STATUS_SUCCESS
            if call is not None and call.input_id == item.input_id and not interrupted:
                caller.call = None
                self.pool.settle(call, item.result, item.data_format)
        return Empty()

    def TaskResult(self, request: pb.TaskResultRequest, caller: Container) -> Empty:
        """The container could not import the function's module; it ends by itself."""
        caller.failure = request.result
        return Empty()

    def _call(self, name: str) -> Call:
        if name not in self.backend.calls:
            raise not_found(f"Function call {name} not found")
        return self.backend.calls[name]

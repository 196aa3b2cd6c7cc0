"""What a benchmark's two sides are asked and answer, each in a process of its own: files, no shared state."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """How the peer is to run. `config` makes the draft's LlamaConfig; `repeats` of 0 asks for losses and gradients."""

    config: dict[str, Any]
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "sdpa"  # attention: "flex_attention" is the peer's best on a GPU
    compact: bool = True  # its teacher without whole-vocabulary logits
    ttt_length: int = 7
    decay: float = 0.8
    repeats: int = 0
    warmup: int = 3
    optimizer: bool = False  # time its AdamW step too: fp32 masters, gradient clipping, schedule


@dataclass(frozen=True)
class Answer:
    """`losses` [K] and `gradients` by checkpoint name; or `seconds` fp64 [repeats], of a training step each.

    `peak_bytes`: the most that was allocated in the timed steps on a GPU, the process's largest size on a CPU.
    """

    losses: Tensor | None
    gradients: dict[str, Tensor]
    seconds: Tensor | None
    peak_bytes: int


def ask(script: Path, tensors: dict[str, Tensor], request: Request) -> Answer:
    """Runs `script` (peer.py or ours.py) in a process of its own, with as many CPU threads as this one.

    Args:
        tensors: the draft's by checkpoint name (`fc.weight`, ..., `d2t`, `t2d`) with the target's
            `embed_tokens.weight` [V, H] and `target_head` [V, H]; `features` [B, T, 3H] and final normed states
            `target_hidden` [B, T, H], neither moved; `input_ids`, `attention_mask` and `loss_mask`, int64 [B, T],
            right-padded. The peer's mask is `peer_mask`'s.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.safetensors"), Path(folder, "answer.safetensors")
        packed = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(packed, asked, metadata={"request": json.dumps(asdict(request))})
        env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        ran = subprocess.run(
            [sys.executable, str(script), str(asked), str(answered)],
            env=env, check=False, capture_output=True, text=True,
        )  # fmt: skip
        if ran.returncode:
            raise RuntimeError(f"{script.name} failed:\n{ran.stderr[-4000:]}")
        found = load_file(answered)
    losses, seconds, peak = (found.pop(name, None) for name in ("losses", "seconds", "peak_bytes"))
    return Answer(losses, found, seconds, peak.item())


def read_request(asked: Path) -> tuple[Request, dict[str, Tensor]]:
    """What `ask` wrote, the tensors on the request's device."""
    with safe_open(asked, "pt") as file:
        request = Request(**json.loads(file.metadata()["request"]))
    return request, load_file(asked, device=request.device)


def timed(step: Callable[[], None], request: Request) -> Tensor:
    """Seconds of each of `repeats` calls after the warm-up, fp64; resets the peak of memory before the first."""
    on_gpu = request.device != "cpu"
    settle = torch.cuda.synchronize if on_gpu else lambda: None
    seconds = []
    for repeat in range(request.warmup + request.repeats):
        if on_gpu and repeat == request.warmup:
            torch.cuda.reset_peak_memory_stats()
        settle()
        start = time.perf_counter()
        step()
        settle()
        seconds.append(time.perf_counter() - start)
    return torch.tensor(seconds[request.warmup :], dtype=torch.float64)


def answer(path: Path, request: Request, found: dict[str, Tensor]) -> None:
    """Writes `found` with the peak of memory."""
    on_gpu = request.device != "cpu"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    save_file(found | {"peak_bytes": torch.tensor(peak)}, path)

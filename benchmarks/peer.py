"""sgl-project/SpecForge's EAGLE-3 training step, run from a checkout of it in a process of its own.

Its package has our package's name, so no process may hold both: `ask` writes a request, a child process that
runs this file imports the peer and writes the answer. What the peer computes (paths below its `specforge/`):

- Alignment: `input_ids` and the target's final states move left by one, the loss mask does not
  (modeling/target/target_head.py:103, from training/strategies/base.py:116 and :255). Position t reads f[t] and
  x[t+1], learns the target at t+1, so predicts x[t+2], and counts when loss_mask[t], that is when token t is the
  assistant's. Each unrolled step moves ids, mask (algorithms/eagle3/model.py:430) and teacher
  (core/eagle3_adapters.py:78) left by one more; rotary position t + i (modeling/draft/llama3_eagle.py:718, :828).
  Each sample's last mask entry is cleared (algorithms/eagle3/data.py:20). Our mask over predicted tokens is the
  peer's moved by two: `peer_mask`.
- Loss: cross-entropy with p renormalised over the draft vocabulary (model.py:495), at temperature 1, averaged over
  all B*T positions, padding and unsupervised ones included (core/loss.py:20, :201); steps weigh 0.8^i
  (strategies/base.py:291).
- Mask: positions whose target argmax lies outside the draft vocabulary give no loss (model.py:493,
  core/compact_teacher.py:143).
"""

import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from exchange import Request, answer, read_request, timed
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig


def find_peer() -> Path | None:
    """The peer's checkout, from SPECFORGE_PEER."""
    return Path(os.environ["SPECFORGE_PEER"]).resolve() if os.environ.get("SPECFORGE_PEER") else None


def peer_mask(mask: Tensor) -> Tensor:
    """Mask bool [B, T] over the tokens to predict, to the peer's over positions, int64 [B, T]."""
    return F.pad(mask[:, 2:], (0, 2)).long()


def load_peer(path: Path, *, eager: bool) -> types.SimpleNamespace:
    """Imports the peer under its own name. Eager: nothing compiled, no Triton, its own reference loss.

    Call it only where our `specforge` has not been imported.
    """
    if "specforge" in sys.modules:
        raise RuntimeError("a package named specforge is loaded already; the peer needs a process of its own")
    if not (path / "specforge" / "algorithms" / "eagle3").is_dir():  # else ours would be found on PYTHONPATH
        raise RuntimeError(f"{path} is no checkout of sgl-project/SpecForge")
    sys.path.insert(0, str(path))
    if eager:
        torch.compile = lambda f=None, **_: f or (lambda g: g)
    names = {
        "Draft": "modeling.draft.llama3_eagle:LlamaForCausalLMEagle3",
        "Unrolled": "algorithms.eagle3.model:OnlineEagle3Model",
        "TargetHead": "modeling.target.target_head:TargetHead",
        "Optimizer": "optimizer:BF16Optimizer",
    }
    parts = {key: name.split(":") for key, name in names.items()}
    with _stub_triton() if eager else nullcontext():
        peer = {key: getattr(import_module(f"specforge.{module}"), name) for key, (module, name) in parts.items()}
    if eager:
        reference = import_module("specforge.core.loss")._compute_loss
        sys.modules["specforge.algorithms.eagle3.model"].LogSoftmaxLoss = types.SimpleNamespace(apply=reference)
    return types.SimpleNamespace(**peer)


@contextmanager
def _stub_triton() -> Iterator[None]:
    """Where Triton is missing (CPU builds of torch), lets core/loss.py define the kernels that eager mode replaces."""
    missing = find_spec("triton") is None
    if missing:
        stub, language = types.ModuleType("triton"), types.ModuleType("triton.language")
        stub.jit, stub.language, language.constexpr = (lambda kernel: kernel), language, None
        import_module("torch.nn.attention.flex_attention")  # torch must not meet the stub, here or later
        sys.modules |= {"triton": stub, "triton.language": language}
    yield
    if missing:
        del sys.modules["triton"], sys.modules["triton.language"]


def _training_step(peer: types.SimpleNamespace, x: dict[str, Tensor], request: Request):
    """The draft, and a function that gives the losses of the K steps, fp32 [K]."""
    config, dtype = LlamaConfig.from_dict(request.config), getattr(torch, request.dtype)
    ids, attended, mask = (x.pop(name) for name in ("input_ids", "attention_mask", "loss_mask"))
    features, final, head = (x.pop(name).to(dtype) for name in ("features", "target_hidden", "target_head"))
    with torch.device(request.device):
        draft = peer.Draft(config, attention_backend=request.backend)
    draft.load_state_dict(x)
    draft.freeze_embedding()
    draft.to(request.device, dtype)
    model = peer.Unrolled(draft, length=request.ttt_length, attention_backend=request.backend)

    def losses() -> Tensor:
        tokens, states, counted = peer.TargetHead.preprocess(None, ids, final, mask)
        if request.compact:
            teacher = {"target": None, "target_hidden_for_compact": states, "target_head_weight": head}
        else:
            teacher = {"target": F.linear(states, head)}
        return torch.stack(model(tokens, attended, loss_mask=counted, hidden_states=features, **teacher)[0])

    return draft, losses


def _answer(checkout: Path, asked: Path, answered: Path) -> None:
    request, tensors = read_request(asked)
    peer = load_peer(checkout, eager=request.device == "cpu")
    draft, losses = _training_step(peer, tensors, request)
    decayed = request.decay ** torch.arange(request.ttt_length, device=request.device)
    if request.repeats:
        optimizer = peer.Optimizer(draft, lr=1e-4) if request.optimizer else None

        def step() -> None:
            (losses() * decayed).sum().backward()
            (optimizer.step if optimizer else draft.zero_grad)()  # its step frees the gradients too

        found = {"seconds": timed(step, request)}
    else:
        each = losses()
        (each * decayed).sum().backward()
        found = {name: p.grad.cpu() for name, p in draft.named_parameters() if p.requires_grad}
        found["losses"] = each.detach().cpu()
    answer(answered, request, found)


if __name__ == "__main__":
    _answer(find_peer(), *map(Path, sys.argv[1:]))

"""The host's TorchCompileModel on an extended model."""

import torch
from comfy.ldm.modules import attention
from comfy_api.torch_helpers import set_torch_compile_wrapper
from exvideo_pack.exvideo_core import host
from torch._dynamo.utils import counters


def test_a_compiled_model_predicts_the_same(loaded, extension, predict, monkeypatch):
    """By the host's own way to compile. A compiler that traced past our layers would fail, or predict as SVD does."""
    # What the host takes on a GPU; that for a CPU asks the system for its free memory, which no compiler can.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    extended = host.apply_extension(loaded[0], extension)
    compiled = extended.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    counters.clear()
    for _ in range(2):
        assert torch.equal(predict(compiled, 30), predict(extended, 30))
    assert counters["stats"]["unique_graphs"] >= 17
    # The one that we ask for, around the whole; the arithmetic inside is compiled without any.
    assert all("torch.compiler.disable" in reason for reason in counters["graph_break"])


def test_compiled_layers_leave_another_s_attention_its_options(loaded, extension, predict):
    """Such as sage attention's node puts there, and which may look at the options of each call."""
    compiled = host.apply_extension(loaded[0], extension)
    set_torch_compile_wrapper(model=compiled, backend="eager")
    seen = []

    def others_attention(function, *args, **kwargs):
        seen.append(kwargs["transformer_options"]["sigmas"])
        return function(*args, **kwargs)

    compiled.model_options["transformer_options"]["optimized_attention_override"] = others_attention
    predict(compiled, 30)
    assert len(seen) >= 32

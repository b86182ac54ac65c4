"""A model's transformer compiled by OpenVINO, which encodes faster than torch on x86 processors.

Nothing but the transformer is replaced: tokenizer, pooling, further layers and normalisation stay sentence-transformers'.
The `openvino` backend of sentence-transformers needs optimum-intel, which does not go with transformers 5.6 and later;
and `openvino.convert_model` reports its use over the network. The PyTorch frontend beneath it, used here, does not.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Lowest cosine to torch's vectors with which the compiled transformer is used. bf16 gives .9999.
AGREEMENT = 0.999
# Read along with the texts to encode: a batch without padding would be compiled to a model that knows none.
_OF_OTHER_LENGTHS = ("a", "a few words more than that")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def compiled(model: SentenceTransformer, texts: Sequence[str], *, bf16: bool) -> Iterator[None]:
    """Let OpenVINO compute the model's transformer for a while, as `compile_transformer` does; then torch does again."""
    ours = compile_transformer(model, texts, bf16=bf16)
    try:
        yield
    finally:
        if ours:
            _transformer(model).__dict__.pop("forward")


def is_compiled(model: SentenceTransformer) -> bool:
    """Whether OpenVINO computes the model's transformer now."""
    return "forward" in getattr(_transformer(model), "__dict__", {})


def compile_transformer(model: SentenceTransformer, texts: Sequence[str], *, bf16: bool) -> bool:
    """Let OpenVINO compute the forward pass of the model's transformer from here on, where it can and agrees with torch.

    Args:
        model: on a CPU; it must not be trained afterwards.
        texts: some of those to encode: the vectors of both ways are compared on them.
        bf16: compute in bf16, else in float32.

    Returns:
        Whether it does; otherwise the model is as it was.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import PreTrainedModel

    transformer = _transformer(model)
    if not isinstance(model[0], Transformer) or not isinstance(transformer, PreTrainedModel):
        return False
    if getattr(transformer.config, "is_decoder", False) or getattr(transformer.config, "is_encoder_decoder", False):
        return False
    if is_compiled(model):
        return False
    texts = [*_OF_OTHER_LENGTHS, *texts]
    expected = _vectors(model, texts)
    try:
        transformer.forward = _compiled(transformer, _features(model, texts), bf16=bf16)
        found = _vectors(model, texts)
        agreement = float(np.min(np.sum(expected * found, axis=1)))
    except Exception as error:  # a frontend for every architecture there is: whatever it raises, torch still can
        agreement, reason = 0.0, f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        reason = f"its vectors agree with torch's to a cosine of {agreement:.4f} only"
    if not agreement >= AGREEMENT:  # also NaN
        transformer.__dict__.pop("forward", None)
        _log.warning("OpenVINO does not encode with this model (%s); torch does, more slowly", reason)
        return False
    return True


def _transformer(model: SentenceTransformer) -> Any:
    return getattr(model[0], "auto_model", None)


def _features(model: SentenceTransformer, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    features = model.tokenizer(
        list(texts), padding=True, truncation=True, max_length=model.max_seq_length, return_tensors="pt"
    )
    return {name: features[name] for name in _INPUTS if name in features}


def _vectors(model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors, shape (texts, dimension), one text at a time and together: with padding and without."""
    import torch

    with torch.inference_mode():
        parts = [model.encode(list(texts), batch_size=size, show_progress_bar=False) for size in (1, len(texts))]
    vectors = np.concatenate(parts).astype(np.float64)
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _compiled(transformer: Any, example: dict[str, torch.Tensor], *, bf16: bool) -> Callable[..., Any]:
    """What takes the place of the transformer's `forward`."""
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from transformers.modeling_outputs import BaseModelOutput

    names = tuple(example)

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *tensors: torch.Tensor) -> Any:
            return self.transformer(**dict(zip(names, tensors, strict=True))).last_hidden_state

    inputs = tuple(example.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(LastHiddenState(), inputs, check_trace=False)
        # Must outlive its reading: the frontend holds no reference to it.
        decoder = TorchScriptPythonDecoder(traced, example_input=inputs)
    frontend = FrontEndManager().load_by_framework("pytorch")
    graph = frontend.convert(frontend.load(decoder))
    how = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Pinned threads of two processes would share one core and leave another idle.
        "ENABLE_CPU_PINNING": False,
    }
    executable = _core().compile_model(graph, "CPU", how)
    by_torch = transformer.forward

    def forward(**features: Any) -> Any:
        further = {
            name for name, value in features.items() if isinstance(value, torch.Tensor) and name in _INPUTS
        } - set(names)
        if further or features.get("output_hidden_states"):
            return by_torch(**features)
        # A request of each call: threads may encode at the same time.
        output = executable.create_infer_request().infer(
            [features[name].numpy() for name in names], share_outputs=False
        )
        return BaseModelOutput(last_hidden_state=torch.from_numpy(output[0]))

    return forward


@functools.cache
def _core() -> Any:
    """OpenVINO's entry, one for the whole process.

    Each one replaces the stack on which this thread's signals are handled and puts back, when it goes, the one it found.
    Of two that overlap, the later puts back one that the earlier has freed: the next Ctrl-C or SIGTERM is a segmentation
    fault instead of a clean stop.
    """
    import openvino

    return openvino.Core()

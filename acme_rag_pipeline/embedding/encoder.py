"""Texts to unit vectors with one model: lazily loaded, bf16 where the processor computes it natively."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from acme_rag_pipeline.embedding.base_model import adds_prompts, passage_prompt, query_prompt
from acme_rag_pipeline.embedding.compiled_transformer import compile_transformer, compiled, is_compiled
from acme_rag_pipeline.embedding.light_bert import LightBert, open_light_bert
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.store.models import ModelDamaged

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Raised when the code from here on gives a text another vector: pooling, precision, truncation, normalisation.
ENCODER_VERSION = "1"
Precision = Literal["auto", "fp32", "bf16"]
CUDA_BATCH = 512
# On a CPU: 32 passages, or as many short texts as hold about as many characters; sentences take 1.6 times as long 32 by 32.
CPU_BATCH, CPU_LONGEST_BATCH, CPU_BATCH_CHARACTERS = 32, 128, 10_000
# Of all texts of a call: about 2,500 tokens, half a second or two in numpy; loading the libraries costs 8.
LIGHT_CHARACTERS = 10_000
# A model reads the beginning of a long text: some ten characters for each of its 256 tokens.
LIGHT_TEXT_CHARACTERS = 2_500
# From so many characters on a model is compiled, if they have come one by one or together: that takes a second, and
# a text then three quarters of the time (two cores with AVX-512 bf16).
COMPILED_CHARACTERS = 150_000
# Smaller batches than torch's: there is less to wait for between two of them, and less padding in them.
COMPILED_BATCH, COMPILED_BATCH_CHARACTERS = 8, 4_000
PLAIN_ATTENTION_TOKENS = 512
_UNOPENED = object()
# Threads that import the libraries at the same time find them half initialised.
_LOADING = threading.Lock()


class _OneThread:
    """NumPy's matrix products on one thread each, for as long as somebody encodes.

    Its threads wait for each other by spinning. Measured on two cores that other programs used too: a query took 0.8 s
    with two threads and 0.03 s with one, five passages of 224 tokens 5 to 25 s and 0.75 s.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            # The limit is the process's: each thread for itself, the last one would restore the limit of another.
            if self._users == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limits.restore_original_limits()


_ONE_THREAD = _OneThread()


class Encoder:
    """A sentence-transformers directory that encodes passages and queries.

    Args:
        folder: the model directory.
        digest: its identity, part of every cache key.
        precision: `auto` is bf16 autocast where the processor has native bf16 (2.3x faster than fp32 on an
            avx512_bf16 machine at a cosine of 0.9999 or more to the fp32 vectors), else fp32.
        model: an already loaded model, such as one in training.
    """

    def __init__(
        self, folder: Path, digest: str, precision: Precision = "auto", model: SentenceTransformer | None = None
    ) -> None:
        self.folder = folder
        self.digest = digest
        self.precision = precision
        self._model = model
        self._light: object = _UNOPENED
        # The weights of a model in training change: when it is compiled its owner says.
        self._may_compile = model is None
        self._compiling = threading.Lock()
        self._characters = 0

    @property
    def model(self) -> SentenceTransformer:
        """The loaded model; loading costs 5 to 7 s the first time in a process, so it waits for the first text.

        Raises:
            ModelDamaged: it cannot be opened.
            SettingsError: it needs program code of its own.
        """
        with _LOADING:
            if self._model is None:
                try:
                    self._model = load_model(self.folder)
                except (ImportError, MemoryError, _out_of_memory()):
                    raise  # no fault of the folder
                except Exception as error:  # each library beneath has its own for a file that is missing or cut off
                    if "trust_remote_code" in str(error):
                        raise SettingsError(
                            f"ACME_RAG_BASE_MODEL: the model {self.folder} comes with program code of its own, which is never "
                            "run here: choose one that the transformers library knows"
                        ) from error
                    cause = next(iter(str(error).splitlines()), type(error).__name__)
                    raise ModelDamaged(
                        f"the model {self.folder} cannot be opened ({cause}). Bring the folder back from a backup, or serve "
                        "an earlier model with `acme-rag rollback`. If it is the base's, delete the folder: the next run copies it again"
                    ) from error
            return self._model

    def encode_passages(self, rendered: Sequence[str]) -> np.ndarray:
        """L2-normalised float32 vectors, shape (texts, dimension)."""
        return self._encode(rendered, "encode_document")

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """L2-normalised float32 vectors, shape (texts, dimension)."""
        return self._encode(queries, "encode_query")

    @contextlib.contextmanager
    def compiled(self, texts: Sequence[str]) -> Iterator[None]:
        """For a model in training whose weights stay meanwhile: OpenVINO computes it, if these texts are enough to pay for it."""
        model = self.model
        if model.device.type != "cpu" or sum(map(len, texts)) < COMPILED_CHARACTERS:
            yield
            return
        with compiled(model, of_all_lengths(texts), bf16=computes_in_bf16(model.device, self.precision)):
            yield

    def _encode(self, texts: Sequence[str], method: str) -> np.ndarray:
        light = self._light_model(texts)
        if light is None:
            array = self._encode_with_library(texts, method)
        else:
            with _ONE_THREAD:
                array = light.encode(list(texts))
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        if not np.isfinite(array).all() or (norms == 0).any():
            raise ValueError(f"model {self.digest[:12]} computed a vector that is not finite or has no length")
        return np.ascontiguousarray(array / norms, dtype=np.float32)

    def _encode_with_library(self, texts: Sequence[str], method: str) -> np.ndarray:
        import torch

        if self.model.device.type == "cuda":
            batch_size = CUDA_BATCH
        elif self._is_compiled(texts):
            batch_size = cpu_batch_size(texts, COMPILED_BATCH, COMPILED_BATCH_CHARACTERS)
        else:
            batch_size = cpu_batch_size(texts)
        while True:
            try:
                with torch.inference_mode(), autocast(self.model.device, self.precision):
                    vectors = getattr(self.model, method)(
                        list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
                    )
                return vectors.float().cpu().numpy()
            except torch.OutOfMemoryError:
                # How many texts a card holds depends on the model and on who else uses it.
                if batch_size <= 8:
                    raise
            # Not within `except`: what the failed batch held lives as long as its traceback.
            batch_size //= 4
            torch.cuda.empty_cache()

    def _is_compiled(self, texts: Sequence[str]) -> bool:
        """Whether OpenVINO computes this model, which is tried once, when there has been enough to encode."""
        with self._compiling:
            if self._may_compile and self.model.device.type == "cpu":
                self._characters += sum(map(len, texts))
                if self._characters >= COMPILED_CHARACTERS:
                    self._may_compile = False
                    bf16 = computes_in_bf16(self.model.device, self.precision)
                    compile_transformer(self.model, of_all_lengths(texts), bf16=bf16)
            return is_compiled(self.model)

    def _light_model(self, texts: Sequence[str]) -> LightBert | None:
        """The numpy encoder, where it is the quicker way and the libraries are not there yet anyway."""
        if self._model is not None or "sentence_transformers" in sys.modules:
            return None
        if sum(min(len(text), LIGHT_TEXT_CHARACTERS) for text in texts) > LIGHT_CHARACTERS:
            return None
        with _LOADING:
            if self._light is _UNOPENED:
                self._light = open_light_bert(self.folder)
            return cast("LightBert | None", self._light)


def of_all_lengths(texts: Sequence[str]) -> list[str]:
    """The shortest, the middle and the longest text: for trying a model."""
    by_length = sorted(texts, key=len)
    return [by_length[0], by_length[len(by_length) // 2], by_length[-1]]


def cpu_batch_size(texts: Sequence[str], fewest: int = CPU_BATCH, batch_characters: int = CPU_BATCH_CHARACTERS) -> int:
    """Texts that go through the model together on a CPU, by their mean length."""
    characters = sum(map(len, texts)) / max(1, len(texts))
    return min(CPU_LONGEST_BATCH, max(fewest, round(batch_characters / max(1.0, characters))))


def versioned(key: str) -> str:
    """A key of what was encoded, or depends on it, by the code of today. Version 1 is the key itself."""
    return key if ENCODER_VERSION == "1" else f"{key}/{ENCODER_VERSION}"


def load_model(folder: Path | str, device: str | None = None) -> SentenceTransformer:
    """Open a model directory in float32, without network, remote code or progress bars.

    Args:
        folder: the directory.
        device: where it computes; default CUDA where there is one, else the CPU.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    _keep_to_the_quota()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = SentenceTransformer(
        str(folder),
        # Left to itself the library takes an Apple GPU, too, where nothing here was ever run; with torch 2.9 a BERT gave a
        # text another vector there alone than among others (pytorch/pytorch#170837).
        device=device or (None if torch.cuda.is_available() else "cpu"),
        local_files_only=True,
        trust_remote_code=False,
        # Weights stored as float16 do not go with bf16 autocast, and in bf16 a training step is too small to move them.
        model_kwargs={"dtype": torch.float32},
    )
    folder = Path(folder)
    added = {"query": query_prompt(folder), "document": passage_prompt(folder)}
    if any(added.values()) and adds_prompts(folder):
        model.prompts |= {name: prompt for name, prompt in added.items() if prompt}
    return model


def _keep_to_the_quota() -> None:
    """Let torch, and OpenVINO which goes by it, start no more threads than a container's quota of processors has work for.

    They count the processors of the whole machine; `OMP_NUM_THREADS` wins.
    """
    import joblib
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))


def _out_of_memory() -> type[Exception]:
    import torch

    return torch.OutOfMemoryError


def use_plain_attention(model: SentenceTransformer) -> None:
    """Compute attention as plain matrix products instead of torch's fused kernel, which is slow on some processors.

    Only for models of texts of up to `PLAIN_ATTENTION_TOKENS`: without the kernel memory grows with the square of the length.
    """
    from transformers import PreTrainedModel

    transformer = getattr(model[0], "auto_model", None)
    longest = model.max_seq_length or math.inf
    if isinstance(transformer, PreTrainedModel) and longest <= PLAIN_ATTENTION_TOKENS:
        transformer.set_attn_implementation("eager")


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """bf16 autocast where it is asked for, or pays."""
    import torch

    if computes_in_bf16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def computes_in_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether a model runs in bf16 there: where it is asked for, or `auto` and pays."""
    return precision == "bf16" or (precision == "auto" and native_bf16(device))


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware; emulated ones are far slower than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False

"""The embedded base model cut to its lowest layers: real weights, tokenizer and format at a third of the cost.

For tests of how training and serving go about their work. Whatever asserts how good vectors are uses the whole model.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import shutil
import tempfile
from pathlib import Path

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL

LAYERS = 2


@functools.cache
def shallow_base() -> Path:
    """A sentence-transformers directory, made once on a machine: every process finds it under the same path."""
    from safetensors.torch import load_file, save_file

    whole = resolve_base_model(EMBEDDED_BASE_MODEL, Path())
    folder = (
        Path(tempfile.gettempdir()) / f"acme-rag-tests-{getpass.getuser()}" / f"MiniLM-L{LAYERS}-{whole.digest[:16]}"
    )
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent)) / folder.name
    shutil.copytree(whole.folder, made)
    config = json.loads((made / "config.json").read_bytes())
    (made / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}), encoding="utf-8")
    weights = load_file(made / "model.safetensors")
    above = tuple(f"encoder.layer.{number}." for number in range(LAYERS, config["num_hidden_layers"]))
    kept = {name: weight for name, weight in weights.items() if not name.startswith(above)}
    assert len(kept) < len(weights)
    save_file(kept, made / "model.safetensors", metadata={"format": "pt"})
    # Another process may have been faster; then its folder stays.
    with contextlib.suppress(OSError):
        made.rename(folder)
    shutil.rmtree(made.parent)
    return folder

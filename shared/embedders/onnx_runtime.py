"""Finds onnxruntime, which is installed with an extra, and what it can run on here."""

from __future__ import annotations

from types import ModuleType

from shared.errors import LvdError

CUDA = "CUDAExecutionProvider"


def import_onnxruntime() -> ModuleType:
    """Return the package. Raises LvdError, with the remedy, where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise LvdError(
            "embedders of kind onnx need onnxruntime: install the extra, as in "
            "`uv pip install -c constraints.txt -e '.[onnx]'`"
        ) from None
    return onnxruntime


def sees_gpu() -> bool:
    """Tell whether graphs can run on a GPU: there is one, and onnxruntime is a build for it."""
    import torch

    return torch.cuda.is_available() and CUDA in import_onnxruntime().get_available_providers()

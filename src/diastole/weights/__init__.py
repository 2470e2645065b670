"""Reading of model files: GGUF and Hugging Face directories behind one face, with nothing in them trusted for sizes."""

from diastole.weights.checkpoint import Checkpoint, open_checkpoint
from diastole.weights.error import WeightsError
from diastole.weights.gguf import GGUF
from diastole.weights.quants import Raw, affine4, byte_factors, dequantize, has_affine4, int8

__all__ = [
    "GGUF",
    "Checkpoint",
    "Raw",
    "WeightsError",
    "affine4",
    "byte_factors",
    "dequantize",
    "has_affine4",
    "int8",
    "open_checkpoint",
]

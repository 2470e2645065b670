"""Tiny model files for tests: random weights, real containers.

``tiny_checkpoint`` makes a whole model in either format, the same weights in both; ``write_gguf`` makes a GGUF file
with a vocabulary beside the weights, and ``random_raw`` one tensor of any stored kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from diastole.types import Array
from diastole.weights import Raw
from diastole.weights.quants import KINDS

TEXT = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "<|im_end|>", "ab", "Ġ"]
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
DIMS: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_MORE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3": {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32},
}
_HALVES = {
    "Q6_K": (208,),
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q5_0": (0,),
}  # where a block holds float16 numbers; else 0 and 2
_QUANTISED = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}  # what gguf.quantize knows


# ---- whole models


def tiny_checkpoint(
    dir: Path,
    family: str,
    format: Literal["gguf", "hf"],
    kind: str = "F32",
    seed: int = 0,
    **dims: Any,
) -> Path:
    """A random model of a few thousand weights; the same ``family``, ``seed`` and ``dims`` give the same weights.

    Args:
        dir: where to put it; made if missing.
        family: "llama", "qwen2", "qwen3" or "gemma3".
        format: a GGUF file, or a Hugging Face directory written by transformers.
        kind: of the matrices. A K kind has random blocks instead of the weights, and needs dims that are multiples of
            256. Hugging Face directories know F32, F16 and BF16.
        dims: keys of config.json that differ from DIMS.

    Returns:
        The path to give to ``open_checkpoint``.
    """
    model = _model(family, seed, dims)
    dir.mkdir(parents=True, exist_ok=True)
    if format == "hf":
        import torch

        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        model.to(dtype).save_pretrained(dir)
        return dir
    path = dir / f"{family}-{kind}.gguf"
    _write_model(path, family, model, kind, seed)
    return path


def _model(family: str, seed: int, dims: dict[str, Any]) -> Any:
    import torch
    import transformers

    config = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma3": transformers.Gemma3TextConfig,
    }[family](**{**DIMS, **_MORE[family], **dims})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for p in model.parameters():  # norms and biases start at 0 or 1, which would hide mistakes
                p.add_(torch.randn_like(p) * 0.05)
    return model


def _write_model(path: Path, family: str, model: Any, kind: str, seed: int) -> None:
    """What the usual converters write for this model."""
    config = model.config
    arch = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[family]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    values = {}
    for name, value in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        w = value.numpy()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            w = pair_rows(w, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if family == "gemma3" and name.endswith("norm.weight"):
            w = w + 1
        values[stored] = w
    if config.tie_word_embeddings:
        values.pop("output.weight", None)
    g = gguf.GGUFWriter(path, family)
    _add_numbers(g, config)
    _add_tensors(g, values, kind, seed)


def pair_rows(w: Array, heads: int) -> Array:
    """Rows of each head from halves (0..h/2-1, h/2..) to neighbours (0, h/2, 1, h/2+1, ...), as converters do."""
    rows = len(w) // heads
    order = [head * rows + half * (rows // 2) + i for head in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return w[order]


def _add_numbers(g: gguf.GGUFWriter, config: Any) -> None:
    g.add_context_length(config.max_position_embeddings)
    g.add_embedding_length(config.hidden_size)
    g.add_feed_forward_length(config.intermediate_size)
    g.add_block_count(config.num_hidden_layers)
    g.add_head_count(config.num_attention_heads)
    g.add_head_count_kv(config.num_key_value_heads)
    g.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    g.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))
    if getattr(config, "head_dim", None):
        g.add_key_length(config.head_dim)
        g.add_value_length(config.head_dim)
    if config.model_type == "gemma3_text":
        g.add_sliding_window(config.sliding_window)
        g.add_attention_scale(config.query_pre_attn_scalar**-0.5)


# ---- one file with a vocabulary


def tensors(
    arch: str, seed: int = 0, d: int = 64, f: int = 96, layers: int = 2, heads: int = 4, kv: int = 2
) -> dict[str, Array]:
    """GGUF names and random float32 values of a small decoder."""
    rng = np.random.default_rng(seed)
    head = d // heads

    def w(*shape: int) -> Array:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    out = {"token_embd.weight": w(len(TEXT), d), "output_norm.weight": 1 + w(d)}
    for i in range(layers):
        at = f"blk.{i}"
        out |= {
            f"{at}.attn_norm.weight": 1 + w(d),
            f"{at}.attn_q.weight": w(d, d),
            f"{at}.attn_k.weight": w(kv * head, d),
            f"{at}.attn_v.weight": w(kv * head, d),
            f"{at}.attn_output.weight": w(d, d),
            f"{at}.ffn_norm.weight": 1 + w(d),
            f"{at}.ffn_gate.weight": w(f, d),
            f"{at}.ffn_up.weight": w(f, d),
            f"{at}.ffn_down.weight": w(d, f),
        }
        if arch == "qwen2":
            out |= {f"{at}.attn_{n}.bias": w(m) for n, m in (("q", d), ("k", kv * head), ("v", kv * head))}
        if arch in {"qwen3", "gemma3"}:
            out |= {f"{at}.attn_{n}_norm.weight": 1 + w(head) for n in "qk"}
        if arch == "gemma3":
            out |= {f"{at}.post_{n}.weight": 1 + w(d) for n in ("attention_norm", "ffw_norm")}
    return out


def write_gguf(
    path: Path,
    arch: str = "llama",
    kind: str = "F32",
    seed: int = 0,
    more: dict[str, Array] | None = None,
    metadata: dict[str, Any] | None = None,
    **dims: int,
) -> dict[str, Array]:
    """A GGUF file.

    Args:
        more: tensors to add, by GGUF name.
        metadata: what to say instead of, or beside, the usual; keys below the architecture's name, such as
            "attention.head_count"; None leaves one out.
        dims: sizes that ``tensors`` takes.

    Returns:
        Its tensors as float32, as they can be read back.
    """
    sizes = {"d": 64, "f": 96, "layers": 2, "heads": 4, "kv": 2, **dims}
    g = gguf.GGUFWriter(path, arch)
    said: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": sizes["d"],
        "feed_forward_length": sizes["f"],
        "block_count": sizes["layers"],
        "attention.head_count": sizes["heads"],
        "attention.head_count_kv": sizes["kv"],
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        **(metadata or {}),
    }
    for key, value in said.items():
        _add(g, f"{arch}.{key}", value)
    g.add_tokenizer_model("gpt2")
    g.add_tokenizer_pre("gpt-2")
    g.add_token_list(TEXT)
    g.add_token_types([3, 3, 3, *([1] * 26), 3, 1, 1])
    g.add_token_merges(["a b"])
    g.add_bos_token_id(1)
    g.add_eos_token_id(2)
    return _add_tensors(g, tensors(arch, seed, **sizes) | (more or {}), kind, seed)


def _add(g: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        g.add_bool(key, value)
    elif isinstance(value, int):
        g.add_uint32(key, value) if value >= 0 else g.add_int32(key, value)
    elif isinstance(value, float):
        g.add_float64(key, value)
    elif isinstance(value, str):
        g.add_string(key, value)
    elif value is not None:
        g.add_array(key, value)


def _add_tensors(g: gguf.GGUFWriter, values: dict[str, Array], kind: str, seed: int) -> dict[str, Array]:
    """Matrices as ``kind``, vectors as F32; ends the file."""
    stored = {}
    for name, value in values.items():
        wanted = "F32" if value.ndim == 1 else kind
        to = gguf.GGMLQuantizationType[wanted]
        if wanted in _QUANTISED or KINDS[wanted].weights == 1:
            data = gguf.quantize(value, to)
        else:
            data = random_raw(wanted, *value.shape, seed=seed, scale=0.002).data
        g.add_tensor(name, data, raw_dtype=to)
        stored[name] = gguf.dequantize(data, to).reshape(value.shape)
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    return stored


# ---- one tensor


def random_raw(kind: str, n: int = 6, k: int = 512, seed: int = 7, scale: float = 1.0) -> Raw:
    """A matrix (n, k) of random bytes that are valid blocks: any bits, but finite float16 scales of size ``scale``."""
    rng = np.random.default_rng(seed)
    block = KINDS[kind]
    if block.weights == 1:
        w = scale * rng.normal(size=(n, k)).astype(np.float32)
        data = gguf.quantize(w, gguf.GGMLQuantizationType[kind]).view(np.uint8)
        return Raw("x", kind, (n, k), data.reshape(n, -1))
    blocks = rng.integers(0, 256, (n * k // block.weights, block.nbytes)).astype(np.uint8)
    for at in _HALVES.get(kind, (0, 2)):
        blocks[:, at : at + 2] = (scale * rng.normal(size=(len(blocks), 1))).astype(np.float16).view(np.uint8)
    return Raw("x", kind, (n, k), blocks.reshape(n, -1))

"""Writes a small Llama model whose greedy output depends on every token of the prompt.

vLLM's own dummy weights are nearly zero: attention then does nothing and the output is the same whatever the cache
holds, so garbage in the cache would pass. Here every projection keeps the size of its input (unit gain), and queries
and keys get a gain above 1, so that attention picks out single tokens and one wrong value changes the output.
"""

import json
import math
import pathlib
import sys

VOCABULARY = 2048
LAYERS = 4
HIDDEN = 256
HEADS = 4
KV_HEADS = 2
INTERMEDIATE = 512
MAX_TOKENS = 2048
QUERY_KEY_GAIN = 2.0
SEED = 20240601

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write(directory: pathlib.Path) -> None:
    # Imported here: the runner imports this module for its sizes and needs no torch for them.
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(SEED)

    def matrix(out_features: int, in_features: int, gain: float = 1.0) -> "torch.Tensor":
        return torch.randn(out_features, in_features, generator=random) * (gain / math.sqrt(in_features))

    head = HIDDEN // HEADS
    # Tokens are rows of unit-size components, not columns of a projection: no fan-in to divide by.
    weights = {"model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=random)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "self_attn.q_proj.weight": matrix(HEADS * head, HIDDEN, QUERY_KEY_GAIN),
            prefix + "self_attn.k_proj.weight": matrix(KV_HEADS * head, HIDDEN, QUERY_KEY_GAIN),
            prefix + "self_attn.v_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            prefix + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * head),
            prefix + "mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            prefix + "mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            prefix + "mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
            prefix + "input_layernorm.weight": torch.ones(HIDDEN),
            prefix + "post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    weights["lm_head.weight"] = matrix(VOCABULARY, HIDDEN)

    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))

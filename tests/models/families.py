"""The families of language models and encoders that are compared with plain transformers: tiny, with random weights.

A family that is not here is tried when it is loaded, as all are; here stands what was found for those that are.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 61
# Windows, chunks, selections of keys and original positions: more than the 30 tokens that loading tries, fewer than the
# longest example.
LIMIT = 40
POSITIONS = 128

# A config gets those that it has.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "type_vocab_size": 1,
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim", "emb_dim"), 32
    ),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "dff", "hidden_dim", "d_inner"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    # Low-rank keys and queries.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    # Experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 16),
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    # Limits.
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_chunk_size"), LIMIT),
    **dict.fromkeys(("keep_window_size", "index_topk"), LIMIT),
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_block_size": 8,
    "index_topk_blocks": LIMIT // 8,
    # States instead of attention.
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "chunk_size": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "n_groups": 1,
    "time_step_rank": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
DYNAMIC |= {"max_position_embeddings": LIMIT}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 8.0],
        "original_max_position_embeddings": LIMIT,
        "factor": 4.0,
    },
    "original_max_position_embeddings": LIMIT,
    "sliding_window": None,
}
PHIMOE = {"rope_parameters": {**LONGROPE["rope_parameters"], "short_mscale": 1.1, "long_mscale": 1.3}}
DECODER = {"is_decoder": True}

# Behind `|`, a variant. What was found for each stands in docs/compatibility.md.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk1": {},
    "axk2": {},
    "bailing_hybrid": {},
    "bamba": {},
    "bart": {},
    "beam": {},
    "bert": {},
    "bert-generation": {},
    "bert-generation|decoder": DECODER,
    "bert|decoder": DECODER,
    "big_bird": {},
    "bigbird_pegasus": {},
    "biogpt": {},
    "bitnet": {},
    "blenderbot": {},
    "blenderbot-small": {},
    "bloom": {},
    "camembert": {},
    "camembert|decoder": DECODER,
    "codegen": {},
    "cohere": {},
    "cohere2": {},
    "cohere2_moe": {},
    "cpmant": {},
    "ctrl": {},
    "cwm": {},
    "data2vec-text": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {},
    "deepseek_v3": {},
    "deepseek_v32": {},
    "deepseek_v4": {},
    "diffllama": {},
    "doge": {},
    "dots1": {},
    "electra": {},
    "electra|decoder": DECODER,
    "ernie": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "ernie|decoder": DECODER,
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {},
    "falcon_h1": {},
    "falcon_mamba": {},
    "flex_olmo": {},
    "flint": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3_text|dynamic": {
        "max_position_embeddings": LIMIT,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": DYNAMIC["rope_parameters"],
        },
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.9, 0.0, 0.9, 0.0],
    },
    "gemma4_unified_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {},
    "gpt-sw3": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_neox|dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        "max_position_embeddings": 40,
    },
    "gpt_oss": {},
    "gptj": {},
    "granite": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {},
    "granitemoehybrid|hybrid": {"layer_types": ["mamba", "attention"]},
    "granitemoeshared": {},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "hyperclovax": {},
    "inkling2_text": {},
    "inkling_text": {},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jamba": {},
    "jetmoe": {},
    "kimi_linear": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "kolibri1": {},
    "laguna": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {},
    "llama": {},
    "llama4_text": {},
    "llama|dynamic": DYNAMIC,
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba": {},
    "mamba2": {"head_dim": 8, "num_heads": 8, "expand": 2},
    "marian": {},
    "mbart": {},
    "megatron-bert": {},
    "megatron-bert|decoder": DECODER,
    "mellum": {},
    "mimo_v2_flash": {},
    "minicpm3": {},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mistral|longrope": LONGROPE,
    "mixtral": {},
    "modernbert-decoder": {},
    "moshi": {},
    "mpt": {},
    "mvp": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "pegasus": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phi3|longrope": LONGROPE,
    "phimoe": {},
    "phimoe|longrope": PHIMOE,
    "plbart": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen2|dynamic": DYNAMIC,
    "qwen2|window": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "qwen3_5_moe_text": {},
    "qwen3_5_text": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "recurrent_gemma": {},
    "rembert": {},
    "rembert|decoder": DECODER,
    "roberta": {},
    "roberta-prelayernorm": {},
    "roberta|decoder": DECODER,
    "roformer": {},
    "roformer|decoder": DECODER,
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "trocr": {},
    "vaultgemma": {},
    "whisper": {},
    "xglm": {},
    "xlm": {},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
    "xlm-roberta|decoder": DECODER,
    "xlnet": {},
    "xlstm": {},
    "youtu": {},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2},
}
# Each way in which a batch is read, and each reason for it, once.
LANGUAGE_MODEL_CUT = [
    "gemma3_text",
    "gpt2",
    "qwen2",
    "phi3|longrope",
    "llama|dynamic",
    "bloom",
    "deepseek_v32",
    "doge",
    "gemma2",
    "llama4_text",
    "mamba",
    "phimoe",
    "lfm2",
    "minimax_m3_vl_text",
    "bert",
    "bert|decoder",
]

# Positions of RoBERTa and its like begin after that of padding.
SECOND = {"pad_token_id": 1}
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {},
    "bart": {},
    "bert": {},
    "bert-generation": {},
    "big_bird": {},
    "big_bird|original_full": {"attention_type": "original_full"},
    "bloom": {},
    "bros": {},
    "camembert": SECOND,
    "convbert": {},
    "data2vec-text": SECOND,
    "deberta": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
    "deepseek_v32": {},
    "distilbert": {},
    "electra": {},
    "ernie": {},
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 5, "token_dropout": False},
    "eurobert": {},
    "eurobert|dynamic": DYNAMIC,
    "fnet": {},
    "gemma3_text": {},
    "gemma3_text|both directions": {"use_bidirectional_attention": True},
    "gpt2": {},
    "gte": {},
    "ibert": SECOND,
    "jina_embeddings_v3": {},
    "llama": {},
    "longformer": {**SECOND, "attention_window": 8},
    "luke": {**SECOND, "entity_vocab_size": 8, "entity_emb_size": 8},
    "mamba": {},
    "megatron-bert": {},
    "mistral": {},
    "mobilebert": {},
    "modernbert": {"local_attention": 2 * LIMIT},
    "mpnet": SECOND,
    "mra": {},
    "nomic_bert": {},
    "nystromformer": {"num_landmarks": 32, "segment_means_seq_len": 32},
    "phi3": {},
    "qwen3": {},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": SECOND,
    "roberta-prelayernorm": SECOND,
    "roc_bert": {},
    "roformer": {},
    "splinter": {},
    "t5": {"d_kv": 8},
    "umt5": {"d_kv": 8},
    "xlm-roberta": SECOND,
    "xlm-roberta-xl": SECOND,
    "xlnet": {},
    "xmod": SECOND,
    "yoso": {},
}
ENCODER_CUT = [
    "bert",
    "roberta",
    "deberta-v2",
    "modernbert",
    "convbert",
    "fnet",
    "eurobert|dynamic",
    "big_bird",
    "t5",
]


def tiny_config(name: str, values: dict[str, Any]) -> PretrainedConfig:
    """Return a small config of a family, with a layer of each kind that its own has."""
    kind = CONFIG_MAPPING[name.split("|")[0]]
    names = inspect.signature(kind.__init__).parameters.keys() | kind.attribute_map.keys()
    try:
        usual = vars(kind())
    except (TypeError, ValueError):
        usual = {}
    chosen = {name: value for name, value in SIZES.items() if name in names}
    if "qk_rope_head_dim" in names:
        chosen.pop("head_dim", None)
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    layers = list(dict.fromkeys(usual.get("layer_types") or []))
    if len(layers) > 1:
        chosen |= {"layer_types": layers, "num_hidden_layers": len(layers)}
    for alias, meant in kind.attribute_map.items():
        if meant in chosen:
            chosen.pop(alias, None)
    return kind(**{**chosen, **values})


def tiny_model(
    name: str, values: dict[str, Any], loader: type[AutoModel] = AutoModelForCausalLM, **sizes: Any
) -> PreTrainedModel:
    """Return a model with random weights, large enough for every part of it to matter."""
    torch.manual_seed(0)
    model = loader.from_config(tiny_config(name, {**sizes, **values})).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            drawn = torch.randn(weights.shape, generator=rng)
            weights.copy_(0.2 * drawn if weights.dim() > 1 else weights + 0.1 * drawn)
    return model

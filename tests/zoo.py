"""Tiny random models of many architectures: what users may bring. One line each, as (class of the model, settings)."""

import torch
import transformers

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ENCODER = BODY | {"vocab_size": 64, "max_position_embeddings": 80, "pad_token_id": 0}
DECODER = ENCODER | SPECIAL | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHORT = SPECIAL | {"vocab_size": 64, "n_positions": 80, "n_embd": 32, "n_layer": 2, "n_head": 4}
SERIES = SPECIAL | {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 80,
    "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
XLM = {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 80, "pad_index": 0}
IMAGE = BODY | {"image_size": 32, "patch_size": 8}
SOUND = BODY | {
    "vocab_size": 64, "conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}
V3 = RELATIVE | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8}
LATENT = DECODER | {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "head_dim": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
WORDS = {"word_embed_proj_dim": 32, "ffn_dim": 48}

TEXT = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5-gated": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5ForConditionalGeneration", T5),
    "umt5": ("UMT5ForConditionalGeneration", T5),
    "longt5": ("LongT5ForConditionalGeneration", T5),
    "longt5-global": ("LongT5ForConditionalGeneration", T5 | {"encoder_attention_type": "transient-global"}),
    "switch": ("SwitchTransformersForConditionalGeneration",
               T5 | {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}),
    "bart": ("BartForConditionalGeneration", SERIES),
    "mbart": ("MBartForConditionalGeneration", SERIES),
    "plbart": ("PLBartForConditionalGeneration", SERIES),
    "mvp": ("MvpForConditionalGeneration", SERIES),
    "pegasus": ("PegasusForConditionalGeneration", SERIES),
    "pegasus-x": ("PegasusXForConditionalGeneration", SERIES | {"num_global_tokens": 2, "block_size": 4}),
    "bigbird-pegasus": ("BigBirdPegasusForConditionalGeneration", SERIES | {"attention_type": "original_full"}),
    "blenderbot": ("BlenderbotForConditionalGeneration", SERIES),
    "blenderbot-small": ("BlenderbotSmallForConditionalGeneration", SERIES),
    "m2m100": ("M2M100ForConditionalGeneration", SERIES),
    "marian": ("MarianMTModel", SERIES),
    "fsmt": ("FSMTForConditionalGeneration",
             SERIES | {"src_vocab_size": 64, "tgt_vocab_size": 64, "langs": ["a", "b"], "vocab_size": 64}),
    "led": ("LEDForConditionalGeneration", SERIES | {
        "attention_window": 4, "max_encoder_position_embeddings": 80, "max_decoder_position_embeddings": 80}),
    "nllb-moe": ("NllbMoeForConditionalGeneration", SERIES | {"num_experts": 4, "encoder_sparse_step": 2,
                                                           "decoder_sparse_step": 2}),
    "prophetnet": ("ProphetNetForConditionalGeneration", SPECIAL | {
        "vocab_size": 64, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
        "max_position_embeddings": 80, "decoder_start_token_id": 0}),
    "bert": ("BertModel", ENCODER),
    "bert-mlm": ("BertForMaskedLM", ENCODER),
    "bert-classifier": ("BertForSequenceClassification", ENCODER),
    "bert-decoder": ("BertLMHeadModel", ENCODER | {"is_decoder": True, "add_cross_attention": True}),
    "roberta": ("RobertaModel", ENCODER),
    "roberta-prenorm": ("RobertaPreLayerNormModel", ENCODER),
    "xlm-roberta": ("XLMRobertaModel", ENCODER),
    "xlm-roberta-xl": ("XLMRobertaXLModel", ENCODER),
    "camembert": ("CamembertModel", ENCODER),
    "data2vec": ("Data2VecTextModel", ENCODER),
    "xmod": ("XmodModel", ENCODER | {"languages": ["en_XX"], "default_language": "en_XX"}),
    "ernie": ("ErnieModel", ENCODER),
    "esm": ("EsmModel", ENCODER | {"mask_token_id": 2}),
    "megatron-bert": ("MegatronBertModel", ENCODER),
    "nystromformer": ("NystromformerModel", ENCODER | {"num_landmarks": 3, "segment_means_seq_len": 3}),
    "rembert": ("RemBertModel", ENCODER | {"input_embedding_size": 16}),
    "roc-bert": ("RoCBertModel", ENCODER | {"enable_pronunciation": False, "enable_shape": False}),
    "roformer": ("RoFormerModel", ENCODER | {"embedding_size": 32}),
    "electra": ("ElectraModel", ENCODER | {"embedding_size": 16}),
    "convbert": ("ConvBertModel", ENCODER | {"embedding_size": 32, "num_groups": 1}),
    "deberta": ("DebertaModel", ENCODER | RELATIVE),
    "deberta-v2": ("DebertaV2Model", ENCODER | RELATIVE),
    "deberta-v3": ("DebertaV2Model", ENCODER | V3),
    "distilbert": ("DistilBertModel", {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "albert": ("AlbertModel", ENCODER | {"embedding_size": 16}),
    "mpnet": ("MPNetModel", ENCODER),
    "ibert": ("IBertModel", ENCODER),
    "fnet": ("FNetModel", ENCODER),
    "squeezebert": ("SqueezeBertModel", ENCODER | {"embedding_size": 32}),
    "funnel": ("FunnelModel", {"vocab_size": 64, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48,
                               "block_sizes": [1, 1], "num_decoder_layers": 1}),
    "xlnet": ("XLNetModel", {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "xlm": ("XLMModel", XLM),
    "flaubert": ("FlaubertModel", XLM),
    "canine": ("CanineModel", ENCODER | {"local_transformer_stride": 4, "num_hash_buckets": 32,
                                         "max_position_embeddings": 128}),
    "luke": ("LukeModel", ENCODER | {"entity_vocab_size": 8, "entity_emb_size": 16}),
    "layoutlm": ("LayoutLMModel", ENCODER),
    "longformer": ("LongformerModel", ENCODER | {"attention_window": [4, 4]}),
    "big-bird": ("BigBirdModel", ENCODER | {"attention_type": "original_full"}),
    "big-bird-sparse": ("BigBirdModel", ENCODER | {"attention_type": "block_sparse"}),
    "mobilebert": ("MobileBertModel", ENCODER | {"embedding_size": 32, "intra_bottleneck_size": 32,
                                                 "true_hidden_size": 32}),
    "modernbert": ("ModernBertModel", ENCODER | {"cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1,
                                                 "eos_token_id": 1, "local_attention": 8}),
    "eurobert": ("EuroBertModel", DECODER | {"mask_token_id": 2}),
    "nomic": ("NomicBertModel", ENCODER),
    "t5-encoder": ("T5EncoderModel", T5),
    "gpt2": ("GPT2LMHeadModel", SHORT),
    "gpt1": ("OpenAIGPTLMHeadModel", SHORT),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", SHORT),
    "gpt-neo": ("GPTNeoForCausalLM", SPECIAL | {
        "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 80,
        "attention_types": [[["global", "local"], 1]]}),
    "gpt-j": ("GPTJForCausalLM", SHORT | {"rotary_dim": 4}),
    "codegen": ("CodeGenForCausalLM", SHORT | {"rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", ENCODER | SPECIAL),
    "ctrl": ("CTRLLMHeadModel", SHORT | {"dff": 48}),
    "opt": ("OPTForCausalLM", DECODER | WORDS),
    "xglm": ("XGLMForCausalLM", SPECIAL | {"vocab_size": 64, "d_model": 32, "num_layers": 2, "attention_heads": 4,
                                           "ffn_dim": 48, "max_position_embeddings": 80}),
    "biogpt": ("BioGptForCausalLM", ENCODER | SPECIAL),
    "bloom": ("BloomForCausalLM", SPECIAL | {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptForCausalLM", SPECIAL | {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4,
                                         "max_seq_len": 80}),
    "falcon": ("FalconForCausalLM", SPECIAL | {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                                               "num_attention_heads": 4}),
    "falcon-new": ("FalconForCausalLM", SPECIAL | {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "new_decoder_architecture": True, "num_kv_heads": 2}),
    "dbrx": ("DbrxForCausalLM", SPECIAL | {
        "vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 80,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}}),
    "llama": ("LlamaForCausalLM", DECODER),
    "llama-bare": ("LlamaModel", DECODER),
    "llama-classifier": ("LlamaForSequenceClassification", DECODER),
    "deepseek-v2": ("DeepseekV2ForCausalLM", LATENT),
    "deepseek-v3": ("DeepseekV3ForCausalLM", LATENT | {"n_group": 2, "topk_group": 1}),
    "phi": ("PhiForCausalLM", DECODER),
    "mixtral": ("MixtralForCausalLM", DECODER | {"num_local_experts": 4}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", DECODER | EXPERTS),
    "qwen2-moe": ("Qwen2MoeForCausalLM", DECODER | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "olmoe": ("OlmoeForCausalLM", DECODER | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssForCausalLM", DECODER | {"num_local_experts": 4}),
    "mamba": ("MambaForCausalLM", SPECIAL | {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                                             "state_size": 4}),
    "recurrent-gemma": ("RecurrentGemmaForCausalLM", DECODER | {
        "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]}),
    "lfm2": ("Lfm2ForCausalLM", DECODER | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "gemma3": ("Gemma3ForCausalLM", DECODER),
    "glm4-ends": ("Glm4ForCausalLM", DECODER | {"eos_token_id": [1, 2]}),
} | {
    name: (f"{kind}ForCausalLM", DECODER)
    for name, kind in {
        "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "gemma2": "Gemma2", "phi3": "Phi3",
        "olmo": "Olmo", "olmo2": "Olmo2", "smollm3": "SmolLM3", "cohere": "Cohere", "cohere2": "Cohere2", "glm": "Glm",
        "glm4": "Glm4", "stablelm": "StableLm", "starcoder2": "Starcoder2", "granite": "Granite",
        "persimmon": "Persimmon", "nemotron": "Nemotron", "helium": "Helium",
        "arcee": "Arcee", "exaone4": "Exaone4", "ernie4.5": "Ernie4_5",
    }.items()
}  # fmt: skip

OTHER = {
    "vit": ("ViTModel", IMAGE),
    "vit-classifier": ("ViTForImageClassification", IMAGE),
    "deit": ("DeiTModel", IMAGE),
    "beit": ("BeitModel", IMAGE),
    "dinov2": ("Dinov2Model", IMAGE),
    "vit-mae": ("ViTMAEModel", IMAGE),
    "siglip-vision": ("SiglipVisionModel", IMAGE),
    "clip-vision": ("CLIPVisionModel", IMAGE),
    "swin": ("SwinModel", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 32,
                           "patch_size": 4}),
    "convnext": ("ConvNextModel", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}),
    "resnet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "vivit": ("VivitModel", BODY | {"image_size": 16, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    "segformer": ("SegformerModel", {
        "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}),
    "clip": ("CLIPModel", {
        "text_config": ENCODER | {"max_position_embeddings": 32, "projection_dim": 16, "eos_token_id": 1},
        "vision_config": IMAGE | {"projection_dim": 16}, "projection_dim": 16}),
    "llava": ("LlavaForConditionalGeneration", {
        "text_config": DECODER | {"model_type": "llama"}, "image_token_index": 3,
        "vision_config": IMAGE | {"model_type": "clip_vision_model"}}),
    "whisper": ("WhisperForConditionalGeneration", SERIES | {
        "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 40, "suppress_tokens": None,
        "begin_suppress_tokens": None}),
    "speech-to-text": ("Speech2TextForConditionalGeneration", SERIES | {
        "input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 40, "max_target_positions": 40}),
    "wav2vec2": ("Wav2Vec2Model", SOUND),
    "hubert": ("HubertModel", SOUND),
    "wavlm": ("WavLMModel", SOUND),
    "ast": ("ASTModel", BODY | {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8,
                                "time_stride": 8}),
}  # fmt: skip

SCAN = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "mamba_d_ssm": 64, "mamba_dt_rank": 2, "use_mamba_kernels": False,
}  # fmt: skip
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}

MERGED = {  # further models, merged but not trained in the tests
    "falcon-h1": ("FalconH1ForCausalLM", DECODER | SCAN),
    "jamba": ("JambaForCausalLM", DECODER | SCAN | EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "bamba": ("BambaForCausalLM", DECODER | SCAN | {"attn_layer_indices": [1]}),
    "granite-hybrid": ("GraniteMoeHybridForCausalLM", DECODER | SCAN | {
        "layer_types": ["mamba", "attention"], "shared_intermediate_size": 48, "num_local_experts": 4}),
    "qwen3-next": ("Qwen3NextForCausalLM", DECODER | DELTA | EXPERTS | HYBRID | {
        "shared_expert_intermediate_size": 16}),
    "olmo-hybrid": ("OlmoHybridForCausalLM", DECODER | DELTA | HYBRID),
    "falcon-mamba": ("FalconMambaForCausalLM", SPECIAL | {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                                                          "state_size": 4}),
    "rwkv": ("RwkvForCausalLM", SPECIAL | {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                                           "attention_hidden_size": 32, "intermediate_size": 48}),
    "minimax": ("MiniMaxForCausalLM", DECODER | HYBRID | {"num_local_experts": 4}),
    "bitnet": ("BitNetForCausalLM", DECODER),
    "apertus": ("ApertusForCausalLM", DECODER),
    "doge": ("DogeForCausalLM", DECODER),
    "dots1": ("Dots1ForCausalLM", DECODER | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                                             "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
                                             "n_shared_experts": 1}),
    "flex-olmo": ("FlexOlmoForCausalLM", DECODER | EXPERTS),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", DECODER | {"cls_token_id": 1, "sep_token_id": 1,
                                                                      "local_attention": 8}),
    "nanochat": ("NanoChatForCausalLM", DECODER),
    "phi-moe": ("PhimoeForCausalLM", DECODER | {"num_local_experts": 4}),
    "gte": ("GteModel", ENCODER),
    "mra": ("MraModel", ENCODER),
    "yoso": ("YosoModel", ENCODER),
    "splinter": ("SplinterModel", ENCODER),
    "tapas": ("TapasModel", ENCODER),
    "bros": ("BrosModel", ENCODER | {"hidden_size": 128}),
    "clip-text": ("CLIPTextModel", ENCODER | {"eos_token_id": 1}),
    "dinov3": ("DINOv3ViTModel", IMAGE),
    "dinov2-registers": ("Dinov2WithRegistersModel", IMAGE),
    "data2vec-vision": ("Data2VecVisionModel", IMAGE),
    "timesformer": ("TimesformerModel", IMAGE | {"num_frames": 2}),
    "videomae": ("VideoMAEModel", IMAGE | {"num_frames": 2, "tubelet_size": 2}),
    "vjepa2": ("VJEPA2Model", {"crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2,
                               "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2,
                               "pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}),
    "siglip": ("SiglipModel", {"text_config": ENCODER | {"projection_size": 32}, "vision_config": IMAGE}),
    "moonshine": ("MoonshineForConditionalGeneration", SPECIAL | {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "encoder_num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
        "encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4, "decoder_start_token_id": 0}),
}  # fmt: skip


def zoo_model(name):
    """The model of this name, with the same random weights every time, in evaluation mode."""
    kind, settings = (TEXT | OTHER | MERGED)[name]
    model_class = getattr(transformers, kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(model_class.config_class(**settings)).eval()

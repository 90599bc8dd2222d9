"""The models of the matrix: one of every timm module, architectures of transformers, ours."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tools.model_matrix import torchvision_stand_in
from tools.model_matrix.check import NUM_CLASSES, Candidate

# Words of small models in timm's names, smallest first.
_SMALL = ("atto", "femto", "pico", "nano", "xxs", "test", "tiny", "_t_", "_t$", "small", "_s_")
_SMALL = (*_SMALL, "_s$", "xs", "050", "_b0", "_m0", "_0", "10", "14", "18", "26")
_TEXT = {"vocab_size": 50, "num_labels": NUM_CLASSES}
_SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}


def timm_candidates(modules: list[str] | None = None) -> list[Candidate]:
    """One model of each timm module (or of those named); needs timm."""
    torchvision_stand_in.install()
    import timm

    found = []
    for module in modules or timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            found.append(_timm_candidate(module, _smallest(names)))
    return found


def _smallest(names: list[str]) -> str:
    for word in _SMALL:
        for name in names:
            if re.search(word, name):
                return name
    return names[0]


def _timm_candidate(module: str, name: str) -> Candidate:
    import timm

    make = partial(timm.create_model, name, num_classes=NUM_CLASSES)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    shape = (2, *(config.input_size if config else (3, 224, 224)))
    return Candidate("timm", module, name, make, partial(_images, shape), _labels)


def _images(shape: tuple[int, ...]) -> tuple[Tensor]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


def _labels() -> Tensor:
    return torch.tensor([0, NUM_CLASSES - 1])


def transformers_candidates() -> list[Candidate]:
    """Small random models of architectures of transformers; needs transformers."""
    import transformers as hf

    no_ties = {"tie_word_embeddings": False}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 4}
    bart = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "max_position_embeddings": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    feed = {"encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    gpt2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
    distil = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 40}
    lm = {"vocab_size": NUM_CLASSES, **gpt2}
    vit = {"image_size": 32, "patch_size": 8, "num_labels": NUM_CLASSES}
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1, 2]}
    swin = {**swin, "window_size": 4, "num_heads": [2, 4, 4], "num_labels": NUM_CLASSES}
    conv = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_labels": NUM_CLASSES}
    wide = {"embedding_size": 8, **conv}
    llama = {**_SIZE, "num_key_value_heads": 2, "pad_token_id": 0}
    rows: list[tuple[str, Any, Any, dict[str, Any], str]] = [
        ("BERT", hf.BertForSequenceClassification, hf.BertConfig, {**_TEXT, **_SIZE}, "text"),
        ("RoBERTa", hf.RobertaForSequenceClassification, hf.RobertaConfig,
         {**_TEXT, **_SIZE, "max_position_embeddings": 40}, "text"),
        ("DistilBERT", hf.DistilBertForSequenceClassification, hf.DistilBertConfig,
         {**_TEXT, **distil}, "text"),
        ("ELECTRA", hf.ElectraForSequenceClassification, hf.ElectraConfig,
         {**_TEXT, **_SIZE, "embedding_size": 32}, "text"),
        ("DeBERTa-v2", hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config,
         {**_TEXT, **_SIZE}, "text"),
        ("ALBERT", hf.AlbertForSequenceClassification, hf.AlbertConfig,
         {**_TEXT, **_SIZE, "embedding_size": 32}, "text"),
        ("GPT-2 (classifier)", hf.GPT2ForSequenceClassification, hf.GPT2Config,
         {**_TEXT, **gpt2, "pad_token_id": 0}, "text"),
        ("Llama (classifier)", hf.LlamaForSequenceClassification, hf.LlamaConfig,
         {**_TEXT, **llama}, "text"),
        ("T5 (encoder-decoder)", hf.T5ForSequenceClassification, hf.T5Config,
         {**_TEXT, **t5, "eos_token_id": 1, "decoder_start_token_id": 0}, "text"),
        ("BART (encoder-decoder)", hf.BartForSequenceClassification, hf.BartConfig,
         {**_TEXT, **bart, **heads, **feed, "eos_token_id": 1}, "text"),
        ("BERT (token classifier)", hf.BertForTokenClassification, hf.BertConfig,
         {**_TEXT, **_SIZE}, "tokens"),
        ("GPT-2 (language model, tied)", hf.GPT2LMHeadModel, hf.GPT2Config, lm, "language"),
        ("GPT-2 (language model)", hf.GPT2LMHeadModel, hf.GPT2Config,
         {**lm, **no_ties}, "language"),
        ("Qwen2 (language model)", hf.Qwen2ForCausalLM, hf.Qwen2Config,
         {**llama, **no_ties, "vocab_size": NUM_CLASSES}, "language"),
        ("ViT", hf.ViTForImageClassification, hf.ViTConfig, {**_SIZE, **vit}, "image"),
        ("DeiT", hf.DeiTForImageClassification, hf.DeiTConfig, {**_SIZE, **vit}, "image"),
        ("Swin", hf.SwinForImageClassification, hf.SwinConfig, swin, "image"),
        ("ConvNeXt", hf.ConvNextForImageClassification, hf.ConvNextConfig,
         {**conv, "num_stages": 3}, "image"),
        ("ResNet", hf.ResNetForImageClassification, hf.ResNetConfig, wide, "image"),
        ("RegNet", hf.RegNetForImageClassification, hf.RegNetConfig, wide, "image"),
    ]  # fmt: skip
    return [_transformers_candidate(*row) for row in rows]


def _transformers_candidate(
    family: str, model: Any, config: Any, options: dict[str, Any], kind: str
) -> Candidate:
    def make() -> nn.Module:
        return model(config(**options))

    extra = {"shift_labels": True} if kind == "language" else {}
    inputs = _image_input if kind == "image" else _token_input
    labels = _labels if kind in ("text", "image") else _token_labels
    return Candidate(
        "transformers", family, model.__name__, make, inputs, labels, device="cpu", options=extra
    )


def _token_input() -> dict[str, Tensor]:
    # The last token ends the sequence, where encoder-decoder classifiers look.
    return {"input_ids": torch.tensor([[3, 5, 4, 2, 6, 1], [2, 2, 4, 6, 3, 1]])}


def _token_labels() -> Tensor:
    return torch.tensor([[3, 5, 4, 2, 6, -100], [2, 2, 4, 6, -100, -100]])


def _image_input() -> dict[str, Tensor]:
    return {"pixel_values": _images((2, 3, 32, 32))[0]}


def own_candidates() -> list[Candidate]:
    """The reference networks of this package."""
    from bll.models.registry import MODEL_NAMES, build_network

    shape = (3, 16, 16)
    return [
        Candidate(
            "bll", name, name,
            lambda name=name: build_network(name, shape, NUM_CLASSES).model,
            partial(_images, (2, *shape)), _labels, device="cpu",
        )
        for name in MODEL_NAMES
    ]  # fmt: skip

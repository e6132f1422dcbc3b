"""Tiny models of Hugging Face with random weights, and the tokenizers and extractors beside them, as their folders."""

from pathlib import Path
from typing import Any

import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *"0123456789", "face", "flag", "cat", "red", "heart"]
RATE = 8000  # Hz, of the audio models


def tokenizer_of(folder: Path, extra: list[str] | None = None) -> None:
    """BERT's tokenizer with a vocabulary of letters and a few words."""
    from transformers import BertTokenizer

    words = [*VOCABULARY, *(extra or [])]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(str(folder))


def bert(folder: Path, **changes: Any) -> Path:
    """Two layers, 16 wide; dropout off."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=40, **(sizes | off | changes))
    return saved(BertForSequenceClassification(config), folder, tokenizer_of)


def ast(folder: Path) -> Path:
    """Spectrograms of 64 frames, 16 mels."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = ASTConfig(max_length=64, num_mel_bins=16, hidden_dropout_prob=0.0, **sizes)
    extractor = ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=64)
    return saved(ASTModel(config), folder, lambda f: extractor.save_pretrained(str(f)))


def wav2vec2(folder: Path, masks: bool = True) -> Path:
    """Waveforms; with layer normalisation and attention masks, or with group normalisation and none."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(5, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer" if masks else "group",
        layerdrop=0.5,
    )
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=masks)
    return saved(Wav2Vec2ForSequenceClassification(config), folder, lambda f: extractor.save_pretrained(str(f)))


def whisper(folder: Path) -> Path:
    """Log-mel spectrograms of one second (100 frames at 16 kHz), 16 mels; encoder and decoder."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=50,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    extractor = WhisperFeatureExtractor(feature_size=16, sampling_rate=16_000, chunk_length=1)
    return saved(WhisperForConditionalGeneration(config), folder, lambda f: extractor.save_pretrained(str(f)))


def saved(model: Any, folder: Path, beside: Any) -> Path:
    """Save a model and what stands beside it, and give its folder. The weights are the same in every test."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    beside(folder)
    return folder

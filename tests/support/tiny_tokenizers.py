"""Tiny tokenizers of each kind that models have, and what their sub-words stand for."""

import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEXTS = ["ngóh deih heui tái hei amerikanische nische", "我哋去 睇戲 我哋"]
CHARACTERS = sorted(set("".join(TEXTS)) - {" "})
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def _fast(tokenizer, **special):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **special)


def sentencepiece(pre_tokenizer=None):
    """Unigram with Metaspace, as XLM-R has it: ``▁`` is a sub-word of its own before every character."""
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "▁", "▁amerika", "nische", *CHARACTERS]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram([(piece, -1.0 - i / 10) for i, piece in enumerate(pieces)], unk_id=1)
    )
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return _fast(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def sentencepiece_of_words():
    """XLM-R's whole pre-tokenizer, which drops white space before it marks words."""
    parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    return sentencepiece(pre_tokenizers.Sequence(parts))


def byte_fallback():
    """BPE with byte fallback, as Llama 2 has it: the normalizer writes ``▁``."""
    pieces = ["<pad>", "<unk>", "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *"aemrik"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer, unk_token="<unk>")


def byte_level(pre_tokenizer=None, merges=30):
    """Byte-level BPE with a space before every text, as RoBERTa has it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258 + merges,
        special_tokens=["<pad>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer, bos_token="<s>")


def byte_level_of_words():
    """Byte-level BPE that puts no space before a text, as Qwen has it."""
    pattern = tokenizers.Regex(r"[^\s\p{L}]?\p{L}+|\s*[^\s\p{L}]+|\s+")
    parts = [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return byte_level(pre_tokenizers.Sequence(parts))


def byte_alone():
    """A sub-word per byte, as ByT5 has it."""
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), merges=0)


def wordpiece():
    """WordPiece, as BERT has it: no mark of a space, accents stripped, [UNK] for what it does not know."""
    pieces = ["<pad>", "[UNK]", "america", "amerika", "##nische", *CHARACTERS, "ng", "##oh"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer, unk_token="[UNK]")


KINDS = {
    kind.__name__: kind
    for kind in (
        sentencepiece,
        sentencepiece_of_words,
        byte_fallback,
        byte_level,
        byte_level_of_words,
        byte_alone,
        wordpiece,
    )
}


def meaning(backend, subword):
    """The bytes of text that a sub-word stands for, without the mark of a space; None if it is unknown."""
    token = backend.convert_ids_to_tokens(subword)
    if token == backend.unk_token:
        return None
    if match := re.fullmatch("<0x(..)>", token):
        return bytes.fromhex(match[1])
    if "ByteLevel" in str(backend.backend_tokenizer.decoder):
        return bytes(_BYTES[character] for character in token).removeprefix(b" ")
    return token.removeprefix("##").removeprefix("▁").replace("▁", " ").encode()

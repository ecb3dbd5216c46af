"""A tagger in use: its tags in the file's scheme, and their probabilities."""

from itertools import islice, repeat

import pytest
import tiny_tokenizers
import torch
from fangyan.data.example import Annotation, Example
from fangyan.data.packing import collate, word_segments
from fangyan.data.tokenization import Tokenizer
from fangyan.models.packed import PackedModel
from fangyan.tasks.token_classification.scheme import Notation
from fangyan.tasks.token_classification.task import TokenClassification
from transformers import BertConfig, BertForTokenClassification, Qwen3Config, Qwen3ForTokenClassification

LABELS = ["O", "B-x", "I-x", "B-y", "I-y"]
SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tagger(task, kind=tiny_tokenizers.wordpiece, causal=False, max_length=32):
    """A predictor with random weights, of which some tags are likelier than others."""
    backend = kind()
    torch.manual_seed(0)
    size = {**SIZE, "vocab_size": len(backend), **task.model_kwargs()}
    if causal:
        model = Qwen3ForTokenClassification(Qwen3Config(**size, num_key_value_heads=1, head_dim=16))
    else:
        model = BertForTokenClassification(BertConfig(**size))
    torch.nn.init.normal_(model.get_submodule("score" if causal else "classifier").weight, std=2.0)
    packed = PackedModel(model.eval(), "rows")
    return task.predictor(packed, Tokenizer(backend), max_length), model.eval()


def examples(*texts):
    return [Example({"tokens": tuple(text.split())}, "", "") for text in texts]


def entities(style="iob2", **settings):
    return TokenClassification(LABELS, "iob2", notation=Notation(style), **settings)


def test_annotate_is_what_predict_tags():
    texts = ["我 哋 去", "heui", "tái hei ngóh deih amerikanische 去"]
    predictor, _ = tagger(entities("bilou"))
    annotations = list(predictor.annotate(examples(*texts)))
    assert [a.tags for a in annotations] == [prediction.tags for prediction in predictor.predict(texts)]
    assert (annotations[0].tags, annotations[0].labels) == (("O", "B-x", "L-x"), ("O", "B-x", "I-x"))
    assert {tag[0] for annotation in annotations for tag in annotation.tags} & set("LU")


@pytest.mark.parametrize("style", ["iob2", "iob1", "iobes", "bilou", "bmes", "io"])
def test_annotate_writes_the_scheme_of_the_file(style):
    """All styles say the same of a sentence; and each is what it reads as."""
    text = "我 哋 去 heui tái hei ngóh deih"
    predictor, _ = tagger(entities(style))
    (found,) = predictor.annotate(examples(text))
    (expected,) = tagger(entities())[0].annotate(examples(text))
    assert found.tags == tuple(Notation(style).write(expected.tags))
    if style != "io":
        assert Notation(style).read(found.tags, "iob2") == list(expected.tags)


def test_annotate_gives_probabilities_of_the_softmax():
    task = TokenClassification(["n", "v", "u"], "plain")
    predictor, model = tagger(task)
    tokens = ("我", "哋", "amerikanische", "去")
    (found,) = predictor.annotate([Example({"tokens": tokens}, "", "")], probabilities=2)
    tokenizer = Tokenizer(tiny_tokenizers.wordpiece())
    (sequence,) = task.tokenize([Example({"tokens": tokens}, "", "")], tokenizer, 32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence.input_ids])).logits[0]
    for place, tag, likely in zip(sequence.alignment.places, found.tags, found.probabilities, strict=True):
        expected = dict(zip(task.labels, logits[place].softmax(-1).tolist(), strict=True))
        best = sorted(expected, key=expected.get, reverse=True)
        assert [name for name, _ in likely] == best[:2]
        assert tag == best[0]
        assert [value for _, value in likely] == pytest.approx(
            [expected[name] for name in best[:2]], abs=1e-5
        )


@pytest.mark.parametrize("style", ["iob2", "iob1", "iobes", "io"])
def test_annotate_adds_what_is_written_as_one_tag(style):
    """All probabilities of a token make 1; the same tag comes once."""
    predictor, _ = tagger(entities(style))
    text = "我 哋 去 heui tái hei ngóh deih"
    (found,) = predictor.annotate(examples(text), probabilities=99)
    (labels,) = tagger(entities())[0].annotate(examples(text), probabilities=99)
    notation, around = Notation(style), [None, *labels.tags, None]
    for t, (likely, of_labels) in enumerate(zip(found.probabilities, labels.probabilities, strict=True)):
        values = [value for _, value in likely]
        assert sum(values) == pytest.approx(1.0, abs=1e-5)
        assert values == sorted(values, reverse=True)
        assert len(dict(likely)) == len(likely)
        sums = {}
        for label, value in of_labels:
            tag = notation.write_one(around[t], label, around[t + 2])
            sums[tag] = sums.get(tag, 0.0) + value
        assert dict(likely) == pytest.approx(sums, abs=1e-5)


def test_annotate_of_a_sentence_in_several_sequences():
    """Each token's probabilities are of the sequence that scores it, and its tags are decoded whole."""
    predictor, _ = tagger(entities(), max_length=16)
    words = ["我", "哋", "去", "heui", "tái", "hei", "ngóh", "deih", "amerikanische", "nische"]
    texts = [" ".join(words * 5), "我", " ".join(words)]
    found = list(predictor.annotate(examples(*texts), probabilities=1))
    assert [len(annotation.tags) for annotation in found] == [50, 1, 10]
    assert [len(annotation.probabilities) for annotation in found] == [50, 1, 10]
    assert found[0].probabilities[25] != found[0].probabilities[0]
    assert [a.tags for a in found] == [a.tags for a in predictor.annotate(examples(*texts))]


def test_annotate_of_20000_tokens():
    predictor, _ = tagger(entities("iobes"))
    (found,) = predictor.annotate(examples(" ".join(["我 哋 去 heui"] * 5000)))
    assert len(found.tags) == 20_000
    predictor, _ = tagger(entities())
    (found,) = predictor.annotate(examples(f"我 {'amerika' * 700} 去"), probabilities=1)
    assert len(found.tags) == len(found.probabilities) == 3


def test_annotate_takes_examples_as_they_come():
    predictor, _ = tagger(entities())
    stream = predictor.annotate(repeat(examples("我 去")[0]))
    assert len(list(islice(stream, 300))) == 300
    assert list(predictor.annotate([])) == []
    assert list(predictor.annotate([Example({"tokens": ()}, "", "")], probabilities=1)) == [
        Annotation((), (), ())
    ]


def test_a_causal_taggers_first_tag_depends_on_the_first_character():
    """On the mark of a space, or its first byte, it would not: both characters begin with the same byte."""
    for kind in (tiny_tokenizers.sentencepiece, tiny_tokenizers.byte_level, tiny_tokenizers.byte_alone):
        task = TokenClassification(["n", "v"], "plain")
        predictor, _ = tagger(task, kind, causal=True)
        assert task.subword == "last"
        first = [
            annotation.probabilities[0]
            for annotation in predictor.annotate(examples("我 哋", "戲 哋"), probabilities=1)
        ]
        assert first[0] != first[1]


def test_use_model_chooses_the_subword_that_has_read_its_token():
    for causal, expected in ((False, "first"), (True, "last")):
        task = TokenClassification(["n", "v"], "plain")
        tagger(task, causal=causal)
        assert task.subword == expected
        assert task.export_config()["subword"] == expected
        assert f"that of its {expected} sub-word that is more than a space" in task.usage_note
    task = TokenClassification(["n", "v"], "plain", subword="first")
    tagger(task, causal=True)
    assert task.subword == "first"


def test_stream_of_words_in_the_scheme_of_the_file():
    task = TokenClassification(["B-_", "I-_"], "segmentation", "characters", Notation("bmes", ""))
    (found,) = tagger(task)[0].predict(["我哋去睇戲我哋去"])
    assert set(found.tags) <= set("BMES")
    assert "".join(word for word, _ in found.words) == "我哋去睇戲我哋去"
    begins = [tag in "BS" for tag in found.tags]
    assert len(found.words) == sum(begins)


@pytest.mark.parametrize("kind", [tiny_tokenizers.wordpiece, tiny_tokenizers.sentencepiece])
@pytest.mark.parametrize("layout", ["varlen", "rows", "padded", "unpadded"])
def test_mean_classifies_the_mean_of_a_tokens_subwords(layout, kind):
    """By hand: the mean of plain logits of one sentence, whose loss and tags are the packed model's."""
    labels = ["a", "b", "c", "d"]
    task = TokenClassification(labels, "plain", subword="mean")
    predictor, model = tagger(task, kind)
    texts = ["tái hei ngóh deih amerikanische 去", "heui 我", "我 哋 tái"]
    backend = kind()
    tokenizer = Tokenizer(backend)
    tags = [tuple("abcdab"), tuple("cd"), tuple("abc")]
    data = [
        Example({"tokens": tuple(text.split()), "tags": own}, "", "")
        for text, own in zip(texts, tags, strict=True)
    ]
    sequences = task.tokenize(data, tokenizer, 64)
    expected, losses = [], []
    for sequence, example in zip(sequences, data, strict=True):
        words = sequence.alignment
        with torch.no_grad():
            logits = model(torch.tensor([sequence.input_ids])).logits[0]
        pieces = [
            tokenizer.subwords(t, "start" if i == 0 else "space")
            for i, t in enumerate(example.fields["tokens"])
        ]
        ends = [len(tokenizer.prefix) + sum(len(p.ids) for p in pieces[:i]) for i in range(len(pieces))]
        means = torch.stack(
            [logits[end + p.first : end + p.last + 1].mean(0) for end, p in zip(ends, pieces, strict=True)]
        )
        assert words.places == [end + p.last for end, p in zip(ends, pieces, strict=True)]
        expected.append(means.log_softmax(-1).exp())
        losses.append(
            torch.nn.functional.cross_entropy(means, torch.tensor(task.classes(example)), reduction="sum")
        )
    assert any(width > 1 for sequence in sequences for width in sequence.alignment.widths)
    found = [annotation.probabilities for annotation in predictor.annotate(data, probabilities=4)]
    packed = PackedModel(model, layout)
    batch = collate(sequences, tokenizer.pad_id, packed.row_width)
    loss = packed.loss(batch)
    torch.testing.assert_close(loss, sum(losses), rtol=1e-5, atol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    for means, sentence in zip(expected, found, strict=True):
        for own, word in zip(means, sentence, strict=True):
            for tag, probability in word:  # the others are nearly 0
                assert probability == pytest.approx(float(own[labels.index(tag)]), abs=1e-4)
    assert "the mean of the logits of its sub-words" in task.usage_note


def test_word_segments():
    """A token of 5,000 letters that are sub-words of their own is one segment; each sub-word is in one."""
    task = TokenClassification(["a", "b"], "plain", subword="mean")
    tokenizer = Tokenizer(tiny_tokenizers.byte_alone())
    data = [Example({"tokens": ("xyz" * 1000, "我"), "tags": ("a", "b")}, "", "")]
    sequences = task.tokenize(data, tokenizer, 512)
    batch = collate([*sequences, *sequences], 0)
    lengths, segment_of = word_segments(batch)
    assert int(lengths.max()) > 400
    assert torch.equal(segment_of, torch.repeat_interleave(torch.arange(len(lengths)), lengths))
    for sequence, (row, column) in zip(batch.sequences, batch.offsets, strict=True):
        for place, width in zip(sequence.alignment.places, sequence.alignment.widths, strict=True):
            end = row * batch.input_ids.shape[1] + column + place
            assert lengths[segment_of[end]] == width
            assert (segment_of == segment_of[end]).nonzero().flatten().tolist() == list(
                range(end - width + 1, end + 1)
            )
    assert (
        word_segments(collate(TokenClassification(["a", "b"], "plain").tokenize(data, tokenizer, 512), 0))
        is None
    )

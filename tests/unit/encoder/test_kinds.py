"""Encoders of many kinds give the vectors of plain transformers and sentence-transformers, up to the last position."""

import copy

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from workflow_scripts.core.errors import StudyError
from workflow_scripts.encoder.loading import load_encoder, load_trained_encoder

POSITIONS = 40
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
# Positions of these begin after that of padding.
OFFSET = ["Roberta", "XLMRoberta", "Camembert", "MPNet", "Data2VecText", "RobertaPreLayerNorm", "IBert", "Longformer"]
KINDS = {
    **dict.fromkeys(OFFSET, SIZES),
    "Esm": {**SIZES, "position_embedding_type": "absolute", "mask_token_id": 4, "token_dropout": False},
    "Bert": SIZES,
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "ConvBert": {**SIZES, "embedding_size": 32},
    "Nystromformer": {**SIZES, "num_landmarks": POSITIONS, "segment_means_seq_len": POSITIONS},
}
TEXTS = ["the first of a few words, and many more than fit here " * n for n in (1, 20, 2, 3)] + ["a", "b c"]


@pytest.fixture(params=KINDS)
def folder(request, tiny, tmp_path):
    """A model of each kind, whose tokenizer doesn't say where texts are cut."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.untrained)
    tokenizer.model_max_length = 10**30
    torch.manual_seed(0)
    kind, values = request.param, dict(KINDS[request.param])
    if kind in OFFSET:
        values["pad_token_id"] = 1
    values["vocab_size"] = len(tokenizer)
    if kind == "Longformer":
        values["attention_window"] = 8
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**values))
    model.save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    return tmp_path / kind


def test_vectors_are_those_of_each_text_alone_however_long(folder):
    encoder = load_encoder(folder, 512, dimension=8)
    limits = {"XLNet": 512}
    offset = 2 if folder.name in OFFSET else 1 if folder.name == "Esm" else 0
    assert encoder.max_tokens == limits.get(folder.name, POSITIONS - offset)
    tokens = encoder.tokenize([(text,) for text in TEXTS])
    plain, (projection,) = AutoModel.from_pretrained(folder).eval(), encoder.projections
    assert max(len(each) for (each,) in tokens) == (encoder.max_tokens if folder.name != "XLNet" else len(tokens[1][0]))
    for vector, (ids,) in zip(encoder.encode(tokens), tokens, strict=True):
        inputs = {"input_ids": torch.from_numpy(ids)[None].long(), "attention_mask": torch.ones(1, len(ids)).long()}
        with torch.inference_mode():
            expected = projection(copy.deepcopy(plain)(**inputs).last_hidden_state[0].mean(0))
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_saved_encoder_is_read_by_sentence_transformers(folder, tmp_path):
    load_encoder(folder, 512, dimension=8).save(tmp_path / "encoder")
    encoder = load_trained_encoder(tmp_path / "encoder")
    plain = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    found = encoder.encode(encoder.tokenize([(text,) for text in TEXTS]))
    expected = np.stack([plain.encode(text) for text in TEXTS])
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 1 - 1e-5


@pytest.mark.parametrize("kind", ["XLM", "XLNet"])
def test_a_model_for_which_segments_count_is_refused(tiny, tmp_path, kind):
    """XLM adds the embedding of a token to each, by default; XLNet's last token is a segment of its own."""
    values = {
        "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
        "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    }[kind]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny.untrained)
    config = getattr(transformers, f"{kind}Config")(**values, vocab_size=len(tokenizer))
    model = getattr(transformers, f"{kind}Model")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    if kind == "XLNet":
        backend = tokenizer.backend_tokenizer
        ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[SEP]", "[CLS]")]
        backend.post_processor = TemplateProcessing(single="$A:0 [SEP]:0 [CLS]:2", special_tokens=ends)
        options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **options)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="reads more than tokens \\(token_type_ids\\)"):
        load_encoder(tmp_path, 64)


def test_a_model_with_a_decoder_is_refused_with_the_kinds_that_can_be_read(tiny, tmp_path):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 300}
    for kind in ("T5Model", "T5EncoderModel"):
        getattr(transformers, kind)(transformers.T5Config(**sizes)).save_pretrained(tmp_path / kind)
        AutoTokenizer.from_pretrained(tiny.untrained).save_pretrained(tmp_path / kind)
        with pytest.raises(StudyError, match="Name a model that gives a state for each token of a text, such as BERT"):
            load_encoder(tmp_path / kind, 64)

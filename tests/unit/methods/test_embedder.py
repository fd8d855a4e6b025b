"""Methods that make embeddings of their own, through the stages that call them."""

import numpy as np
import pytest
import torch
from exact_gradients import exact_gradients
from sentence_transformers import SentenceTransformer
from tiny_study import FINETUNING
from transformers import OPTConfig, OPTForCausalLM

from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.language_model.losses import evaluate, load_language_model, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.methods.embed_by_method import embed_by_method
from workflow_scripts.methods.embedder import LanguageModelReader
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.fit_method import fit_method
from workflow_scripts.methods.less import ADAPTER, adamw_step, add_adapters
from workflow_scripts.methods.rds import open_embedder as open_rds
from workflow_scripts.methods.warmup import warmup_sample
from workflow_scripts.methods.warmup_lm import warmup_lm
from workflow_scripts.study.methods import METHODS
from workflow_scripts.study.sections import Finetuning

SOURCE = {"model": "builtin:tiny", "revision": None, "trust_remote_code": False}
EMBEDDING = {"for_tests": False, "prompt_words": 256, "batch_tokens": 512, "precision": "float32"}
WARMUP = Finetuning(**FINETUNING)
SMALL = {"less": {"lora_rank": 2, "lora_alpha": 8, "epochs": 1, "dimension": 14 * 2 * 4}}
OF_LMS = [name for name, method in METHODS.items() if method.own and method.own.language_model]


@pytest.fixture(scope="module")
def warm(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm") / "language_model_warm"
    warmup_lm(tiny.tokens, folder, language_model=tiny.language_model, **SOURCE, examples=60, finetuning=WARMUP, seed=1)
    return folder


@pytest.fixture(scope="module")
def fit(tiny, warm, tmp_path_factory):
    """Returns a function that gives (LM's folder, fitted file or None) of a method, fitted once."""
    folder = tmp_path_factory.mktemp("fitted")

    def fitted(name):
        own = METHODS[name].own
        lm = {"base": tiny.language_model, "warm": warm}[own.language_model]
        path = folder / f"{name}.safetensors"
        if own.fitted and not path.exists():
            settings = {**own.settings, **SMALL.get(name, {})}
            values = {"examples": 60, "measured_examples": 40, "finetuning": WARMUP, "seed": 1}
            fit_method(tiny.tokens, path, language_model=lm, **SOURCE, module=own.module, settings=settings, **values)
        return lm, path if own.fitted else None

    return fitted


@pytest.fixture
def embed(fit, tiny, tmp_path):
    """Returns a function that embeds a file of tokens by a method, float32 [examples, dimension]."""

    def embedded(name, tokens=tiny.tokens, **changes):
        own = METHODS[name].own
        lm, fitted = fit(name)
        values = {**EMBEDDING, "embedding_precision": "float32", **changes}
        path = tmp_path / f"{name}.parquet"
        embed_by_method(
            tokens,
            path,
            fitted=fitted,
            language_model=lm,
            lm_source=SOURCE,
            module=own.module,
            settings={**own.settings, **SMALL.get(name, {})},
            **values,
        )
        table = read_table(path)
        assert float(read_metadata(path)["seconds"]) > 0
        return np.stack(table["embedding"].to_numpy()), table

    return embedded


def test_the_warm_lm_has_lower_losses(tiny, warm):
    examples = read_examples(tiny.tokens)
    sample = warmup_sample(examples, 60, 1)
    before, after = (
        evaluate(load_language_model(folder), sample, 4096).mean() for folder in (tiny.language_model, warm)
    )
    assert after < before
    again = warmup_sample(dict(reversed(examples.items())), 60, 1)
    assert all(one is other for one, other in zip(sample, again, strict=True))
    assert len(warmup_sample(examples, 10_000, 1)) == len(examples)


@pytest.mark.parametrize("name", OF_LMS)
def test_embeddings_stand_in_order_and_the_batch_changes_none(tiny, embed, tmp_path, name):
    found, table = embed(name)
    assert table["example_id"].to_pylist() == sorted(read_examples(tiny.tokens))
    assert np.isfinite(found).all()
    if name != "dsdm" and not name.startswith("ekfac"):
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-4)
    (tmp_path / f"{name}.parquet").unlink()
    tokens = read_table(tiny.tokens)
    write_table(tmp_path / "turned.parquet", tokens.take(list(range(30))[::-1]))
    turned, _ = embed(name, tmp_path / "turned.parquet", batch_tokens=1)
    np.testing.assert_allclose(turned[::-1], found[:30], rtol=0.02, atol=2e-3 * np.abs(found).max())


def test_only_new_tokens_are_embedded(tiny, embed, tmp_path, capsys):
    write_table(tmp_path / "part.parquet", read_table(tiny.tokens).slice(0, 50))
    before, _ = embed("rds", tmp_path / "part.parquet")
    after, _ = embed("rds")
    assert f"{len(after) - 50} new embeddings, 50 kept" in capsys.readouterr().err
    np.testing.assert_array_equal(after[:50], before)


def test_rds_is_the_mean_of_the_last_hidden_states(tiny, embed):
    lm = load_language_model(tiny.language_model)
    lm.set_attn_implementation("eager")
    found, _ = embed("rds")
    for place, example in list(enumerate(read_examples(tiny.tokens).values()))[:5]:
        with torch.no_grad():
            output = lm(torch.from_numpy(example.tokens.astype(np.int64))[None], output_hidden_states=True)
        mean = output.hidden_states[-1][0].mean(0).numpy()
        np.testing.assert_allclose(found[place], mean / np.linalg.norm(mean), rtol=1e-3, atol=1e-5)


def test_tracin_is_the_cosine_of_gradients_but_for_the_projection(tiny, warm, embed):
    lm = load_language_model(warm)
    examples = list(read_examples(tiny.tokens).values())[:40]
    whole = torch.stack(
        [torch.cat([exact_gradients(lm, one, name).flatten() for name in mlp_layers(lm)]) for one in examples]
    )
    whole = torch.nn.functional.normalize(whole, dim=1)
    exact = (whole @ whole.T)[~np.eye(40, dtype=bool)]
    found, _ = embed("tracin")
    projected = (found[:40] @ found[:40].T)[~np.eye(40, dtype=bool)]
    assert np.corrcoef(exact, projected)[0, 1] > 0.9


def test_less_makes_adamws_step_of_training_examples_alone(tiny, embed):
    tests, _ = embed("less", for_tests=True)
    examples, _ = embed("less", for_tests=False)
    assert tests.shape == examples.shape == (len(read_examples(tiny.tokens)), 14 * 2 * 4)
    assert not np.allclose(tests, examples)


def test_adamws_step_is_torchs():
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0)
    for _ in range(3):
        weight.grad = torch.randn(2, 3)
        optimizer.step()
    state = optimizer.state[weight]
    fitted = {
        "x.mean": state["exp_avg"].clone(),
        "x.square": state["exp_avg_sq"].clone(),
        "steps": state["step"].clone(),
    }
    before, gradient = weight.detach().clone(), torch.randn(2, 3)
    weight.grad = gradient
    optimizer.step()
    step = adamw_step(fitted, torch.device("cpu"))("x", gradient[None])[0]
    torch.testing.assert_close(before - 0.5 * step, weight.detach(), rtol=1e-4, atol=1e-6)


def test_adapters_leave_the_head_alone_and_the_loss_as_it_was(tiny):
    lm = load_language_model(tiny.language_model)
    examples = list(read_examples(tiny.tokens).values())[:8]
    before = evaluate(lm, examples, 4096)
    adapters = add_adapters(lm, 2, 8, seed=3)
    np.testing.assert_allclose(evaluate(lm, examples, 4096), before, rtol=1e-5)
    assert len(adapters) == 2 * 2 * 7
    assert not any("lm_head" in name for name in adapters)
    again = add_adapters(load_language_model(tiny.language_model), 2, 8, seed=3)
    name = next(name for name in adapters if f"lora_A.{ADAPTER}" in name)
    torch.testing.assert_close(adapters[name].weight, again[name].weight)


def test_a_sentence_encoder_stored_in_half_precision_computes_in_single(tiny, tmp_path):
    """Squares of numbers as large as these are beyond float16."""
    model = SentenceTransformer(str(tiny.untrained), device="cpu")
    with torch.no_grad():
        model[0].auto_model.encoder.layer[-1].output.LayerNorm.weight *= 3000
    model.similarity_fn_name = "cosine"
    model.half().save(str(tmp_path / "model"))
    values = {**EMBEDDING, "embedding_precision": "float32", "lm_source": None, "module": "sentence_encoder"}
    path = tmp_path / "embeddings.parquet"
    embed_by_method(tiny.corpus, path, settings={"model": str(tmp_path / "model")}, **values)
    found = np.stack(read_table(path)["embedding"].to_numpy())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_rds_has_the_width_of_the_states_that_the_lm_gives(tiny):
    sizes = {"hidden_size": 32, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm = OPTForCausalLM(OPTConfig(vocab_size=64, word_embed_proj_dim=16, max_position_embeddings=64, **sizes)).eval()
    lm.config.use_cache = False
    use_packing(lm)
    embedder = open_rds(LanguageModelReader(lm, 256, "float32"), {}, False)
    vectors = embedder.embed([TokenizedExample(np.arange(3, 9), 2)])
    assert (embedder.dimension, vectors.shape) == (16, (1, 16))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_sentence_encoder_is_compared_as_it_says(tiny, tmp_path, similarity):
    model = SentenceTransformer(str(tiny.untrained), device="cpu")
    model.similarity_fn_name = similarity
    model.save(str(tmp_path / "model"))
    values = {**EMBEDDING, "embedding_precision": "float32", "lm_source": None, "module": "sentence_encoder"}
    path = tmp_path / "embeddings.parquet"
    embed_by_method(tiny.corpus, path, settings={"model": str(tmp_path / "model")}, **values)
    found = np.stack(read_table(path)["embedding"].to_numpy())
    texts = [text for (text,) in encoder_texts(read_table(tiny.corpus), 256, "joint")]
    expected = model.encode(texts, normalize_embeddings=similarity == "cosine")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (np.abs(np.linalg.norm(found, axis=1) - 1) < 1e-5).all() == (similarity == "cosine")

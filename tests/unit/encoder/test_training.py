"""Gradient caching is exact, a learned scale is folded in exactly, a stopped training goes on to the same bits."""

import numpy as np
import pytest
import torch
from tiny_study import TRAINING, training_values

from workflow_scripts.core import tracking as core_tracking
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.tracking import Tracking
from workflow_scripts.encoder import model as encoder_module
from workflow_scripts.encoder import tracked_curves
from workflow_scripts.encoder import train_encoder as stage
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.encoder.objective import Objective, group_scores, ranking_loss
from workflow_scripts.encoder.training import Draw, backpropagate_step, draw_step
from workflow_scripts.models.loading import load_tokenizer
from workflow_scripts.targets.tables import read_folds


@pytest.fixture(scope="module")
def files(tiny):
    """Subsets and targets of three folds x four subsets."""
    from tiny_study import SAMPLING

    from workflow_scripts.targets.collect_targets import collect_targets
    from workflow_scripts.targets.sample_subsets import sample_subsets

    folder = tiny.folder / "training"
    losses = tiny.block(folder / "block.parquet", folds=[0, 3], indexes=[0, 4])
    sizes = {"folds": 3, "subsets_per_fold": 4}
    collect_targets([losses], folder / "targets.parquet", **sizes, seeds=1, max_diverged_share=0.0)
    subsets = folder / "subsets.parquet"
    sample_subsets(tiny.tokens, tiny.tokens, subsets, folder / "validation.parquet", sampling=SAMPLING, **sizes)
    return {"corpus": tiny.corpus, "subsets": subsets, "targets": folder / "targets.parquet"}


@pytest.fixture
def model(tiny):
    return load_encoder(tiny.untrained, 64)


@pytest.fixture
def tokens(model, files):
    folds = read_folds(files["subsets"], files["targets"])
    return stage.tokenize(model, files["corpus"], folds, 256)


@pytest.fixture
def draw(files):
    fold = read_folds(files["subsets"], files["targets"])[0]
    return Draw(fold.tests, fold.members, fold.labels)


def gradient(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def plain_step(model, objective, tokens, draw, pooling="attention"):
    """One graph over all examples, each encoded where it occurs, one by one."""
    tests = torch.cat([model([tokens[int(i)]]) for i in draw.tests])
    scale, steepness = objective.log_scale.exp(), objective.log_steepness.exp()
    group = []
    for subset in draw.members:
        examples = torch.cat([model([tokens[int(i)]]) for i in subset])
        members = torch.arange(len(subset))[None]
        group.append(group_scores(tests * scale, examples, members, pooling) * steepness)
    loss = ranking_loss(torch.cat(group, 1), torch.from_numpy(draw.labels.T), 0.1, 5.0)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("learned_scale", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 200, 10**6])
def test_gradient_caching_gives_the_gradient_of_the_whole_graph(model, tokens, draw, chunk_tokens, learned_scale):
    model.double()
    objective = Objective("attention", 0.1, 5.0, learned_scale).double()
    loss = plain_step(model, objective, tokens, draw)
    expected, scale = gradient(model), objective.log_scale.grad
    model.zero_grad()
    objective.zero_grad()
    found = backpropagate_in_double(model, objective, tokens, draw, chunk_tokens)
    assert found == pytest.approx(loss, rel=1e-6)
    assert (gradient(model) - expected).norm() <= 1e-6 * expected.norm()
    if learned_scale:
        assert objective.log_scale.grad.item() == pytest.approx(scale.item(), rel=1e-6)


def padded_step(model, objective, tokens, draw):
    """The way most people would write: every subset encoded again, padded to its longest row; one graph."""

    def encode(ids):
        rows = [torch.from_numpy(tokens[int(i)][0]) for i in ids]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long()
        mask = torch.stack([torch.arange(padded.shape[1]) < len(row) for row in rows]).long()
        states = model.transformer(input_ids=padded, attention_mask=mask).last_hidden_state
        return model.projections[0]((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))

    model.transformer.set_attn_implementation("sdpa")
    tests, group = encode(draw.tests), []
    for subset in draw.members:
        group.append(group_scores(tests, encode(subset), torch.arange(len(subset))[None], objective.pooling))
    loss = ranking_loss(torch.cat(group, 1), torch.from_numpy(draw.labels.T), 0.1, 5.0)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("pooling", ["attention", "mean"])
@pytest.mark.parametrize("chunk_tokens", [200, 10**6])
# In float32 by rounding alone: 0.8e-5 to 2.5e-5 were seen, depending on the processor.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_a_step_is_the_padded_one(model, tokens, draw, tiny, pooling, chunk_tokens, dtype, bound):
    assert model.packed
    objective = Objective(pooling, 0.1, 5.0, learned_scale=False)
    loss = backpropagate_step(model.to(dtype), objective, tokens, draw, chunk_tokens, "float32")
    plain = load_encoder(tiny.untrained, 64).to(dtype)
    expected = padded_step(plain, objective, tokens, draw)
    assert loss == pytest.approx(expected, rel=min(bound, 1e-5))
    assert (gradient(model) - gradient(plain)).norm() <= bound * gradient(plain).norm()


def backpropagate_in_double(model, objective, tokens, draw, chunk_tokens):
    """The step in float64, so that rounding doesn't hide a wrong gradient."""
    as_float, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        return backpropagate_step(model, objective, tokens, draw, chunk_tokens, "float32")
    finally:
        torch.Tensor.float = as_float
        torch.set_default_dtype(torch.float32)


def test_each_distinct_example_is_encoded_once(model, tokens, draw):
    seen = passes_over(model)
    backpropagate_step(model, Objective("mean", 0.1, 5.0, False), tokens, draw, 10**6, "float32")
    assert [len(batch.order) for batch in seen] == [len(set(draw.tests) | set(draw.members.reshape(-1)))]


def passes_over(model):
    """The batches that `model` will embed, in their order."""
    seen, embed = [], model.embed
    model.embed = lambda batch, *precision: (seen.append(batch), embed(batch, *precision))[1]
    return seen


def test_both_passes_of_a_cached_step_read_the_same_batches(model, tokens, draw, monkeypatch):
    packed, pack = [], AttributionEncoder.pack
    monkeypatch.setattr(AttributionEncoder, "pack", lambda *given: (packed.append(1), pack(*given))[1])
    seen = passes_over(model)
    backpropagate_step(model, Objective("mean", 0.1, 5.0, False), tokens, draw, 200, "float32")
    assert len(packed) > 1
    assert len(seen) == 2 * len(packed)
    assert all(one is other for one, other in zip(seen[: len(packed)], seen[len(packed) :], strict=True))


def test_the_loss_is_asked_for_before_the_second_pass(model, tokens, draw, monkeypatch):
    """Asked for at the end, it makes the CPU wait for the whole step, and then the GPU for the next one."""
    order, item = [], torch.Tensor.item
    seen = passes_over(model)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: (order.append(len(seen)), item(self))[1])
    backpropagate_step(model, Objective("mean", 0.1, 5.0, False), tokens, draw, 200, "float32")
    assert order == [len(seen) // 2]


@pytest.mark.parametrize("chunk_tokens", [200, 10**6])
def test_a_step_with_weights_in_bfloat16_is_near_the_one_in_float32(model, tokens, draw, chunk_tokens):
    objective = Objective("attention", 0.1, 5.0, learned_scale=False)
    losses, gradients = {}, {}
    for way, precision in (("exact", "float32"), ("autocast", "bfloat16"), ("weights", "bfloat16")):
        model.zero_grad()
        model.bfloat16_weights = way == "weights"
        losses[way] = backpropagate_step(model, objective, tokens, draw, chunk_tokens, precision)
        gradients[way] = gradient(model)
    assert gradients["weights"].dtype == torch.float32
    distance = {
        way: ((found - gradients["exact"]).norm() / gradients["exact"].norm()) for way, found in gradients.items()
    }
    assert 0 < distance["autocast"] < 0.05
    assert 0 < distance["weights"] < 0.4
    assert losses["weights"] == pytest.approx(losses["exact"], rel=0.02)


@pytest.mark.parametrize(
    ("precision", "bfloat16_weights", "tolerance"),
    [
        ("float32", False, 1e-4),
        pytest.param("bfloat16", False, 0.05, marks=pytest.mark.slow),
        pytest.param("bfloat16", True, 0.4, marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_are_the_plain_ones(model, tokens, draw, precision, bfloat16_weights, tolerance, monkeypatch):
    """Traced as `torch.compile` does it, but not made into kernels, which needs a compiler."""
    objective, found = Objective("attention", 0.1, 5.0, learned_scale=False), []
    model.bfloat16_weights = bfloat16_weights
    compile_module, layers = torch.nn.Module.compile, []

    def trace(module, **options):
        layers.append(module)
        compile_module(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    for compiled in (False, True):
        model.zero_grad()
        if compiled:
            model.compile_layers()
        for chunk_tokens in (200, 300, 10**6):
            loss = backpropagate_step(model, objective, tokens, draw, chunk_tokens, precision)
        found.append((loss, gradient(model)))
    (expected_loss, expected), (loss, traced) = found
    assert len(layers) == model.transformer.config.num_hidden_layers
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert (traced - expected).norm() <= tolerance * expected.norm()


def test_without_a_number_chunks_suit_the_device(model, tokens, draw, monkeypatch):
    monkeypatch.setitem(encoder_module.CHUNK_TOKENS, "cpu", 200)
    seen = passes_over(model)
    backpropagate_step(model, Objective("mean", 0.1, 5.0, False), tokens, draw, None, "float32")
    assert len(seen) > 2
    assert all(batch.tokens.numel() <= 200 for batch in seen)


def test_draws_are_parts_of_the_fold_and_follow_the_seed(files):
    fold = read_folds(files["subsets"], files["targets"])[1]
    drawn = draw_step(fold, 2, 3, 1, "step", 5)
    assert drawn.members.shape == (2, 6)
    assert drawn.labels.shape == (2, 3)
    for test, labels in zip(drawn.tests, drawn.labels.T, strict=True):
        column = fold.labels[:, fold.tests.tolist().index(test)]
        rows = [fold.members.tolist().index(subset) for subset in drawn.members.tolist()]
        assert labels.tolist() == column[rows].tolist()
    again = draw_step(fold, 2, 3, 1, "step", 5)
    assert (again.tests == drawn.tests).all()
    assert not all((draw_step(fold, 2, 3, 1, "step", s).tests == drawn.tests).all() for s in range(6, 12))


def test_folds_line_up_with_their_files(files):
    folds = read_folds(files["subsets"], files["targets"])
    targets = read_table(files["targets"]).to_pandas().set_index(["subset", "example_id"])["label"]
    assert len(folds) == 3
    for number, fold in enumerate(folds):
        for index in range(4):
            for column, test in enumerate(fold.tests):
                assert fold.labels[index, column] == targets[4 * number + index, test]


def train(tiny, files, folder, tracking=None, untrained=None, **changes):
    stage.train_encoder(
        **files,
        untrained=untrained or tiny.untrained,
        encoder=folder / "encoder",
        log=folder / "log.parquet",
        tracking=tracking,
        **training_values(**changes),
    )
    weights = load_encoder(folder / "encoder", 64).state_dict()
    return weights, read_table(folder / "log.parquet").drop_columns("seconds")


def test_a_folded_scale_leaves_group_scores(model, tokens, draw):
    objective = Objective("attention", 0.1, 5.0, True)
    with torch.no_grad():
        objective.log_scale.fill_(-3.0)
    ids = np.unique(draw.members)
    members = torch.from_numpy(np.searchsorted(ids, draw.members))

    def embeddings(wanted):
        return torch.from_numpy(model.encode([tokens[int(i)] for i in wanted], 10**6))

    trained = objective.groups(embeddings(draw.tests), embeddings(ids), members)
    stage._fold_scale(model, objective)
    saved = group_scores(embeddings(draw.tests), embeddings(ids), members, "attention")
    torch.testing.assert_close(saved, trained.detach())


@pytest.mark.parametrize("stop_after", [3, 6])
def test_a_stopped_training_goes_on_to_the_same_bits(tiny, files, tmp_path, monkeypatch, stop_after):
    expected, expected_log = train(tiny, files, tmp_path / "straight")
    steps = []
    step = stage.backpropagate_step

    def stopping(*arguments):
        steps.append(1)
        if len(steps) > stop_after:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(stage, "backpropagate_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, files, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "encoder").exists()
    steps.clear()
    monkeypatch.setattr(stage, "backpropagate_step", lambda *arguments: (steps.append(1), step(*arguments))[1])
    found, log = train(tiny, files, tmp_path / "stopped")
    assert len(steps) == TRAINING.steps - 2 * (stop_after // 2)
    assert log.equals(expected_log)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["encoder", "log.parquet"]


@pytest.mark.parametrize("tracked_at_first", [True, False])
def test_a_stopped_training_goes_on_with_the_same_curves(tiny, files, tmp_path, monkeypatch, tracked_at_first):
    """They hold every step of the log once, also where the tracker was turned on in between, and change no number."""
    expected, expected_log = train(tiny, files, tmp_path / "untracked")
    written, step = [], stage.backpropagate_step

    def opened(folder, name, run):
        return tracked_curves._Run("run", lambda values, step: written.append((step, values)), lambda: None)

    monkeypatch.setattr(stage, "require_tracker", lambda tracker: None)
    monkeypatch.setitem(tracked_curves._OPENED_BY, "tensorboard", opened)
    tracking, calls = Tracking("tensorboard", tmp_path / "curves"), []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(stage, "backpropagate_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, files, tmp_path / "stopped", tracking=tracking if tracked_at_first else None)
    found, log = train(tiny, files, tmp_path / "stopped", tracking=tracking)
    assert [number for number, _ in written] == list(range(TRAINING.steps + 1))
    for row, (_, values) in zip(log.to_pylist(), written, strict=True):
        for name in ("loss", "validation_lds"):
            assert values.get(name) == (None if row[name] is None else pytest.approx(row[name], rel=1e-6))
    assert written[-1][1]["scale"] > 0
    assert log.equals(expected_log)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_tracker_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(core_tracking, "find_spec", lambda name: None)
    nowhere = dict.fromkeys(["corpus", "untrained", "subsets", "targets", "encoder", "log"], tmp_path / "nowhere")
    with pytest.raises(StudyError, match="pip install mlflow"):
        stage.train_encoder(**nowhere, **training_values(), tracking=Tracking("mlflow", tmp_path))


def test_the_best_checkpoint_is_kept_and_patience_stops(tiny, files, tmp_path, monkeypatch):
    scores = iter([0.1, 0.5, 0.2, 0.3, 0.9])
    monkeypatch.setattr(stage, "validation_lds", lambda *_: next(scores))
    kept, log = train(tiny, files, tmp_path / "patient", patience=2, learned_scale=False)
    assert log["step"].to_pylist() == list(range(7))
    scores = iter([0.1, 0.5])
    best, _ = train(tiny, files, tmp_path / "short", steps=2, learned_scale=False)
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_a_training_that_had_ended_ends_again_where_it_did(tiny, files, tmp_path, monkeypatch):
    """Its encoder couldn't be written, as on a full disk: the next job must not train on."""
    given = [0.1, 0.5, 0.2, 0.3]
    monkeypatch.setattr(stage, "validation_lds", lambda *_: scores.pop(0))
    scores = [*given]
    expected, expected_log = train(tiny, files, tmp_path / "whole", patience=2)
    publish = stage._publish
    monkeypatch.setattr(stage, "_publish", lambda *_: 1 / 0)
    scores = [*given]
    with pytest.raises(ZeroDivisionError):
        train(tiny, files, tmp_path / "again", patience=2)
    monkeypatch.setattr(stage, "_publish", publish)
    scores = [0.9]
    found, log = train(tiny, files, tmp_path / "again", patience=2)
    assert log.equals(expected_log)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_folds_that_can_validate_nothing_stop_the_training(tiny, files, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "validation_lds", lambda *_: float("nan"))
    with pytest.raises(StudyError, match="the encoder can't be validated"):
        train(tiny, files, tmp_path)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize("learned_scale", [True, False])
def test_projections_may_have_no_bias(tiny, files, tmp_path, learned_scale):
    start = load_encoder(tiny.untrained, 64)
    for number, projection in enumerate(start.projections):
        plain = torch.nn.Linear(projection.in_features, projection.out_features, bias=False)
        start.projections[number] = plain
    start.save(tmp_path / "start")
    weights, _ = train(tiny, files, tmp_path, untrained=tmp_path / "start", learned_scale=learned_scale)
    assert not any(name.startswith("projections") and name.endswith("bias") for name in weights)


def test_the_ends_of_texts_are_read_in_training_alone(tiny, files, tmp_path):
    train(tiny, files, tmp_path, truncation="last")
    text = " ".join(read_table(files["corpus"], ["prompt"])["prompt"].to_pylist())
    model = load_encoder(tmp_path / "encoder", 64)
    saved = load_tokenizer(tmp_path / "encoder")(text, truncation=True)["input_ids"]
    assert saved == model.tokenize([(text,)])[0][0].tolist()
    assert saved != model.tokenize([(text,)], "last")[0][0].tolist()


def test_training_improves_on_what_it_sees(tiny, files, tmp_path):
    _, log = train(tiny, files, tmp_path, steps=60, validate_every=60)
    losses = log["loss"].to_pylist()[1:]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def folds_of_steps(share, steps, measured=3, predicted=5):
    """Name the fold of each step, `m0` to `p4`."""
    names = [[f"{kind}{number}" for number in range(count)] for kind, count in (("m", measured), ("p", predicted))]
    return [stage._fold_of_step(step, *names, share, 1) for step in range(1, steps + 1)]


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_the_share_of_steps_on_predicted_targets(share):
    found = folds_of_steps(share, 120)
    counts = np.cumsum([name.startswith("p") for name in found])
    # Never off by more than a step, so not in one run at the beginning or end.
    assert np.abs(counts - share * np.arange(1, 121)).max() <= 1
    for kind, number in (("m", 3), ("p", 5)):
        own = [name for name in found if name.startswith(kind)]
        rounds = [own[first : first + number] for first in range(0, len(own) - number + 1, number)]
        assert all(len(set(one)) == number for one in rounds)


def test_without_predicted_targets_the_order_is_what_it_was():
    orders = [generator(1, "fold order", round_).permutation(3) for round_ in range(4)]
    assert folds_of_steps(0.0, 12, predicted=0) == [f"m{fold}" for order in orders for fold in order]


def test_a_loss_that_is_no_number_stops_the_training(tiny, files, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "backpropagate_step", lambda *_: float("nan"))
    with pytest.raises(StudyError, match="loss at step 1 is not a finite number"):
        train(tiny, files, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_an_encoder_learns_from_predicted_targets_alone(tiny, files, tmp_path):
    """All measured folds are held back; what is learned are the labels that were predicted."""
    given = {"surrogate_subsets": files["subsets"], "surrogate_targets": files["targets"]}
    paths = [files["corpus"], tiny.untrained, files["subsets"], files["targets"]]
    values = training_values(validation_folds=3, surrogate_share=1.0)
    stage.train_encoder(*paths, tmp_path / "encoder", tmp_path / "log.parquet", **given, **values)
    assert len(read_table(tmp_path / "log.parquet")) == TRAINING.steps + 1
    losses = read_table(tmp_path / "log.parquet")["loss"].to_pylist()[1:]
    assert np.isfinite(losses).all()
    assert (tmp_path / "encoder" / "modules.json").exists()

# Which files a rule reads, where that depends on the study. No rules here.
def train_tokens(wildcards):
    return drawn_from(wildcards.pool, 0)


def test_tokens(wildcards):
    return drawn_from(wildcards.pool, 1)


def drawn_from(pool, role):
    """A corpus as the LM reads it; where no LM does, every row can be drawn."""
    corpus = plan_of_study.corpora_of(pool)[role]
    is_read = pool in plan_of_study.pools or corpus in plan_of_study.tokenized_corpora()
    return tokens_of(pool, role) if is_read else f"{RESULTS}/corpora/{corpus}.parquet"


def tokens_of(pool, role):
    return f"{RESULTS}/tokens{plan_of_study.language_model_of(pool)}/{plan_of_study.corpora_of(pool)[role]}.parquet"


def language_model(lm=""):
    """The LM's folder as a named input, where the workflow makes or fetches it."""
    folder = language_model_folder(lm)
    return {"language_model": folder} if folder else {}


def language_model_folder(lm):
    if plan_of_study.is_builtin(lm):
        return f"{RESULTS}/language_model{lm}"
    return snapshot_folder(plan_of_study.snapshot_of_lm(lm))


def snapshot_folder(name):
    return f"{RESULTS}/models/{name}" if name else []


def snapshot(name):
    """The folder of a hub model as a named input; nothing for other models."""
    return {"snapshot": snapshot_folder(name)} if name else {}


def snapshots():
    return [snapshot_folder(name) for name, one in plan_of_study.hub_models.items() if one.is_loaded]


def language_model_of_tokens(wildcards):
    return language_model_folder(wildcards.lm)


def language_model_of_pool(wildcards):
    return language_model_folder(plan_of_study.language_model_of(wildcards.pool))


def pretraining_corpus(wildcards):
    return f"{RESULTS}/corpora/{plan_of_study.language_model(wildcards.lm).pretraining.corpus}.parquet"


def source_files(wildcards):
    return plan_of_study.source_files(wildcards.corpus)


def dataset_file(name):
    return f"{RESULTS}/datasets/{name}.json"


def dataset_of_corpus(wildcards):
    """The commit of the hub dataset that a corpus is read from; nothing for other corpora."""
    dataset = plan_of_study.dataset(wildcards.corpus)
    return dataset_file(snapshot_name(dataset.name, dataset.revision)) if dataset else []


def datasets():
    return [dataset_file(name) for name in plan_of_study.hub_datasets]


def corpora_of_hub():
    return [f"{RESULTS}/corpora/{corpus}.parquet" for corpus in study.corpora if plan_of_study.dataset(corpus)]


def corpora_left_out(wildcards):
    return [f"{RESULTS}/corpora/{other}.parquet" for other in study.corpora[wildcards.corpus].without]


def blocks(wildcards):
    names = plan_of_study.blocks(wildcards.pool)
    return [f"{RESULTS}/targets/{wildcards.pool}/{name}.parquet" for name in names]


def inputs_of_untrained_encoder(wildcards):
    corpus = f"{RESULTS}/corpora/{study.targets.corpus}.parquet"
    read = language_model() if plan_of_study.reads_tokens_of_lm(wildcards.variant) else {}
    return {"corpus": corpus} | read | snapshot(plan_of_study.snapshot_of_encoder(wildcards.variant))


def untrained_encoder(wildcards):
    return f"{RESULTS}/encoder_untrained" + (
        wildcards.variant if plan_of_study.has_own_initialization(wildcards.variant) else ""
    )


def encoder_folder(wildcards):
    kind, at, variant = wildcards.encoder.partition("@")
    return f"{RESULTS}/" + {"trained": "encoder", "untrained": "encoder_untrained"}[kind] + at + variant


def train_embeddings(wildcards):
    """Embeddings of the training corpus or of a part of it; none for a method that doesn't embed."""
    embedding = plan_of_study.embedding_of(wildcards.method, for_tests=False)
    corpus = study.evaluations[wildcards.evaluation].train
    return f"{RESULTS}/embeddings/{embedding}/{corpus}{wildcards.get('part', '')}.parquet" if embedding else []


def embeddings_of(method, corpus, for_tests):
    """Embeddings of a corpus, of all parts; none for a method that doesn't embed."""
    embedding = plan_of_study.embedding_of(method, for_tests)
    parts = plan_of_study.parts_of(corpus) if embedding else []
    return [f"{RESULTS}/embeddings/{embedding}/{corpus}{part}.parquet" for part in parts]


def test_embeddings(wildcards):
    return embeddings_of(wildcards.method, study.evaluations[wildcards.evaluation].test, for_tests=True)


def chosen_pooling(wildcards):
    """How a method's scores are pooled, where held-back folds choose it."""
    is_chosen = plan_of_study.has_chosen_pooling(wildcards.method)
    return f"{RESULTS}/poolings/{wildcards.method}.parquet" if is_chosen else []


def target_embeddings(for_tests):
    return lambda wildcards: embeddings_of(wildcards.method, study.targets.corpus, for_tests)


def inputs_of_unstored(wildcards):
    """What a method whose embeddings aren't stored reads to compute them; nothing for other methods."""
    if not plan_of_study.method(wildcards.method).is_unstored:
        return {}
    evaluation = study.evaluations[wildcards.evaluation]
    tokens = {f"{role}_tokens": f"{RESULTS}/tokens/{getattr(evaluation, role)}.parquet" for role in ("train", "test")}
    return tokens | model_of_unstored(wildcards.method)


def inputs_of_unstored_targets(wildcards):
    """The same for the corpus of the targets."""
    return unstored_targets_of(wildcards.method)


def unstored_targets_of(method):
    if not plan_of_study.method(method).is_unstored:
        return {}
    return {"tokens": f"{RESULTS}/tokens/{study.targets.corpus}.parquet"} | model_of_unstored(method)


def inputs_of_predicted_targets(wildcards):
    """The corpus that further folds are drawn from, and what predicts their targets."""
    method = plan_of_study.surrogate.method
    return inputs_of_predictions(method, plan_of_study.poolings_of(method)[0])


def inputs_of_held_back(wildcards):
    """The same for the folds that are held back from the encoder."""
    return inputs_of_predictions(wildcards.method, plan_of_study.blended_pooling(wildcards.method))


def inputs_of_predictions(method, pooling):
    return unstored_targets_of(method) | {
        "corpus": f"{RESULTS}/corpora/{study.targets.corpus}.parquet",
        "train_embeddings": embeddings_of(method, study.targets.corpus, for_tests=False),
        "test_embeddings": embeddings_of(method, study.targets.corpus, for_tests=True),
        # How held-back folds choose the pooling; nothing where they don't.
        "chosen": f"{RESULTS}/poolings/{method}.parquet" if pooling == "chosen" else [],
    }


def held_back_predictions(wildcards):
    return [f"{RESULTS}/held_back/{method}.parquet" for method in methods_of(wildcards.blend)]


def predicted(folder):
    """Subsets or targets of the surrogate, for an encoder that learns from it."""

    def file(wildcards):
        return f"{RESULTS}/{folder}/surrogate.parquet" if plan_of_study.learns_from_surrogate(wildcards.variant) else []

    return file


def model_of_unstored(method):
    return fitted_file(method) | language_model_of(plan_of_study.embedding_spec(method))


def language_model_of(own):
    """The LM that a method reads, as a named input, where the workflow makes or fetches it."""
    if own.language_model == "warm":
        return {"language_model": f"{RESULTS}/language_model_warm"}
    return language_model() if own.language_model else {}


def inputs_of_fit(wildcards):
    tokens = f"{RESULTS}/tokens/{plan_of_study.warmup_corpus()}.parquet"
    return {"tokens": tokens} | language_model_of(plan_of_study.embedding_spec(wildcards.method))


def fitted_file(embedding):
    """What a method was fitted to, as a named input; nothing for one that isn't fitted."""
    fit = plan_of_study.fit_of(embedding)
    return {"fitted": f"{RESULTS}/fitted/{fit}.safetensors"} if fit else {}


def inputs_of_own_embeddings(wildcards):
    own = plan_of_study.embedding_spec(wildcards.embedding)
    folder = "tokens" if own.language_model else "corpora"
    examples = f"{RESULTS}/{folder}/{wildcards.corpus}.parquet"
    inputs = {"examples": examples} | fitted_file(wildcards.embedding) | language_model_of(own)
    return inputs | snapshot(plan_of_study.snapshot_of_embeddings(wildcards.embedding))


def of_every_part(folder):
    def files(wildcards):
        parts = plan_of_study.parts_of(study.evaluations[wildcards.evaluation].train)
        return [f"{RESULTS}/{folder}/{wildcards.method}/{wildcards.evaluation}{part}.parquet" for part in parts]

    return files


def corpus_of(role):
    def corpus(wildcards):
        return f"{RESULTS}/corpora/{getattr(study.evaluations[wildcards.evaluation], role)}.parquet"

    return corpus


def of_every_method(folder, evaluations):
    return expand(
        f"{RESULTS}/{folder}/{{method}}/{{evaluation}}.parquet",
        method=study.scoring.methods,
        evaluation=evaluations,
    )


def top_lists(evaluations):
    """Top lists of every method, and of the blends that have them."""
    return expand(
        f"{RESULTS}/scores/{{method}}/{{evaluation}}.parquet",
        method=[*study.scoring.methods, *study.listed_blends],
        evaluation=evaluations,
    )


def inputs_of_blend(wildcards):
    """Embeddings of the training rows and the tests by both methods, which stand in one file each."""
    evaluation = study.evaluations[wildcards.evaluation]
    files = {}
    for place, method in zip(("first", "second"), methods_of(wildcards.blend)):
        (files[f"{place}_train"],) = embeddings_of(method, evaluation.train, for_tests=False) or [[]]
        files[f"{place}_test"] = embeddings_of(method, evaluation.test, for_tests=True)
    return files


def leaks():
    return f"{RESULTS}/evaluation/leaks.parquet" if study.targets else []


def labels():
    return f"{RESULTS}/evaluation/labels.parquet"


def training_log():
    return f"{RESULTS}/encoder.log.parquet" if study.targets else []


def judgement(table):
    """A table of the evaluation, where any evaluation has an LDS."""
    return f"{RESULTS}/evaluation/{table}.parquet" if plan_of_study.lds_evaluations else []


def average():
    """The mean LDS over several evaluation sets; nothing where there is one."""
    return {"average": f"{RESULTS}/evaluation/average_lds.parquet"} if plan_of_study.averaged_evaluations else {}


def experiment_tables():
    return [f"{RESULTS}/evaluation/{EXPERIMENT_TABLES[name]}.parquet" for name in plan_of_study.experiments()]


def train_tokens_of_experiment(wildcards):
    return tokens_of(plan_of_study.experiment(wildcards.experiment).evaluation, 0)


def test_tokens_of_experiment(wildcards):
    return tokens_of(plan_of_study.experiment(wildcards.experiment).evaluation, 1)


def selection_pool_tokens(wildcards):
    return tokens_of(plan_of_study.experiment("selection").evaluation, 0)


def language_model_of_experiment(wildcards):
    evaluation = plan_of_study.experiment(wildcards.experiment).evaluation
    return language_model_folder(plan_of_study.language_model_of(evaluation))


def validation_of(experiment=None):
    """The tests of an experiment; without its name, of the wildcard's."""

    def validation(wildcards):
        evaluation = plan_of_study.experiment(experiment or wildcards.experiment).evaluation
        return f"{RESULTS}/subsets/{evaluation}.validation.parquet"

    return validation


def corpus_of_experiment(role, experiment=None):
    """The corpus that an experiment's evaluation has as `train` or `test`; without its name, of the wildcard's."""

    def corpus(wildcards):
        evaluation = study.evaluations[plan_of_study.experiment(experiment or wildcards.experiment).evaluation]
        return f"{RESULTS}/corpora/{getattr(evaluation, role)}.parquet"

    return corpus


def scores_of(experiment, folder="scores"):
    def scores(wildcards):
        evaluation = plan_of_study.experiment(experiment).evaluation
        methods = plan_of_study.experiment_methods(experiment)
        return [f"{RESULTS}/{folder}/{method}/{evaluation}.parquet" for method in methods]

    return scores


def base_scores_of(experiment):
    return scores_of(experiment, f"experiments/{experiment}/groups")


def measured_of(experiment):
    def measured(wildcards):
        jobs = plan_of_study.experiment(experiment).jobs
        return [f"{RESULTS}/experiments/{experiment}/measured/{job}.parquet" for job in range(jobs)]

    return measured


def embeddings_of_damaged_pool(wildcards):
    embedding = plan_of_study.embedding_of(wildcards.method)
    return f"{RESULTS}/embeddings/{embedding}/{DAMAGED_POOL}.parquet" if embedding else []


def trusted_test_embeddings(wildcards):
    corpus = study.evaluations[plan_of_study.experiment("detection").evaluation].test
    return embeddings_of(wildcards.method, corpus, for_tests=True)


def reader_of_losses(wildcards):
    return language_model_folder("") if wildcards.reader == "base_lm" else f"{RESULTS}/language_model_warm"


def harm_of_every_method(wildcards):
    return [
        f"{RESULTS}/experiments/detection/harm/{method}.parquet"
        for method in plan_of_study.experiment_methods("detection")
    ]


def losses_of_damaged_pool(wildcards):
    return [f"{RESULTS}/losses/{name}/{DAMAGED_POOL}.parquet" for name in plan_of_study.detection_losses()]


def classified_scores(wildcards):
    return top_lists(plan_of_study.classified())


def classified_corpora(wildcards):
    return corpora_of_all(plan_of_study.classified())


def labelled_corpora(wildcards):
    return corpora_of_all(plan_of_study.labelled())


def corpora_of_all(evaluations):
    names = {corpus for evaluation in evaluations for corpus in plan_of_study.corpora_of(evaluation)}
    return [f"{RESULTS}/corpora/{name}.parquet" for name in sorted(names)]


def embeddings_of_all():
    """Embeddings of the training rows and the tests of every evaluation, by every method that stores them."""
    files = [
        file
        for method in study.scoring.methods
        for evaluation in study.evaluations.values()
        for corpus, for_tests in ((evaluation.train, False), (evaluation.test, True))
        for file in embeddings_of(method, corpus, for_tests)
    ]
    return list(dict.fromkeys(files))


def evaluation_of(curation):
    return study.evaluations[study.curation[curation].evaluation]


def curated_corpus(role):
    def corpus(wildcards):
        return f"{RESULTS}/corpora/{getattr(evaluation_of(wildcards.curation), role)}.parquet"

    return corpus


def curation_validation(wildcards):
    return f"{RESULTS}/subsets/{study.curation[wildcards.curation].evaluation}.validation.parquet"


def curation_scores(wildcards):
    """Top lists, for a rule that they suffice for."""
    choice = study.curation[wildcards.curation]
    return f"{RESULTS}/scores/{choice.method}/{choice.evaluation}.parquet" if choice.reads_top_lists else []


def curation_embeddings(role):
    """Embeddings of all rows, for a rule that scores them all; none for a method that doesn't embed."""

    def embeddings(wildcards):
        choice = study.curation[wildcards.curation]
        corpus = getattr(evaluation_of(wildcards.curation), role)
        return [] if choice.reads_top_lists else embeddings_of(choice.method, corpus, for_tests=role == "test")

    return embeddings


def curated_source_files(wildcards):
    return plan_of_study.source_files(evaluation_of(wildcards.curation).train)


def dataset_of_curated(wildcards):
    dataset = plan_of_study.dataset(evaluation_of(wildcards.curation).train)
    return dataset_file(snapshot_name(dataset.name, dataset.revision)) if dataset else []


def rejected_of_curated(wildcards):
    return f"{RESULTS}/corpora/{evaluation_of(wildcards.curation).train}.rejected.parquet"


def losses_of_curated(wildcards):
    """How unlikely an LM finds the rows of the corpus; nothing for a study without an LM."""
    reader, corpus = plan_of_study.reader_of_suspects(), evaluation_of(wildcards.curation).train
    return f"{RESULTS}/losses/{reader}/{corpus}.parquet" if reader else []


def suspects_of_every_list():
    return expand(
        f"{RESULTS}/curation/{{curation}}/suspects.{{form}}",
        curation=plan_of_study.lists_for_review(),
        form=["parquet", "md"],
    )


def reviewed_rows(wildcards):
    return study.curation[wildcards.curation].drop


def curated_files():
    return [f"{RESULTS}/{file}" for name in study.curation for file in plan_of_study.curated_files(name)]


def measured_selections(wildcards):
    return [f"{RESULTS}/curation/{name}/selection.parquet" for name in plan_of_study.measured_selections()]


def curated_data_tokens(role):
    def tokens(wildcards):
        return tokens_of(plan_of_study.experiment("curated_data").evaluation, role)

    return tokens

# Which files a rule reads, where that depends on the study. No rules here.
def train_tokens(wildcards):
    return drawn_from(plan_of_study.corpora_of(wildcards.pool)[0])


def test_tokens(wildcards):
    return drawn_from(plan_of_study.corpora_of(wildcards.pool)[1])


def drawn_from(corpus):
    """A corpus as the LM reads it; where no LM does, every row can be drawn."""
    return f"{RESULTS}/{'tokens' if corpus in plan_of_study.tokenized_corpora() else 'corpora'}/{corpus}.parquet"


def language_model():
    """The LM's folder as a named input, where the workflow makes it; a hub model is no file."""
    return {"language_model": f"{RESULTS}/language_model"} if plan_of_study.has_builtin_lm else {}


def source_files(wildcards):
    return plan_of_study.source_files(wildcards.corpus)


def corpora_left_out(wildcards):
    return [f"{RESULTS}/corpora/{other}.parquet" for other in study.corpora[wildcards.corpus].without]


def blocks(wildcards):
    names = plan_of_study.blocks(wildcards.pool)
    return [f"{RESULTS}/targets/{wildcards.pool}/{name}.parquet" for name in names]


def encoder_folder(wildcards):
    return f"{RESULTS}/" + {"trained": "encoder", "untrained": "encoder_untrained"}[wildcards.encoder]


def train_embeddings(wildcards):
    return embeddings_of(wildcards, "train", [wildcards.get("part", "")])


def test_embeddings(wildcards):
    return embeddings_of(wildcards, "test")


def embeddings_of(wildcards, role, parts=None):
    """Files of a corpus's embeddings: of these parts, or of all; none for a method that doesn't embed."""
    embedding = plan_of_study.embedding_of(wildcards.method, for_tests=role == "test")
    corpus = getattr(study.evaluations[wildcards.evaluation], role)
    names = [
        f"{RESULTS}/embeddings/{embedding}/{corpus}{part}.parquet" for part in parts or plan_of_study.parts_of(corpus)
    ]
    # One file by itself: stages tell one from several.
    return [] if not embedding else names[0] if len(names) == 1 else names


def language_model_of(own):
    """The LM that a method reads, as a named input, where the workflow makes it."""
    if own.language_model == "warm":
        return {"language_model": f"{RESULTS}/language_model_warm"}
    return language_model() if own.language_model else {}


def inputs_of_fit(wildcards):
    tokens = f"{RESULTS}/tokens/{plan_of_study.warmup_corpus()}.parquet"
    return {"tokens": tokens} | language_model_of(plan_of_study.own_of(wildcards.method))


def inputs_of_own_embeddings(wildcards):
    own = plan_of_study.own_of(wildcards.embedding)
    folder = "tokens" if own.language_model else "corpora"
    examples = f"{RESULTS}/{folder}/{wildcards.corpus}.parquet"
    fitted = f"{RESULTS}/fitted/{plan_of_study.method_of(wildcards.embedding)}.safetensors"
    return {"examples": examples} | ({"fitted": fitted} if own.fitted else {}) | language_model_of(own)


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


def leaks():
    return f"{RESULTS}/evaluation/leaks.parquet" if study.targets else []


def training_log():
    return f"{RESULTS}/encoder.log.parquet" if study.targets else []


def judgement(table):
    """A table of the evaluation, where any method is judged."""
    return f"{RESULTS}/evaluation/{table}.parquet" if plan_of_study.judged else []

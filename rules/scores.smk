rule embed_corpus:
    """Embed a corpus or a part of it; rows that were embedded before keep their embedding."""
    input:
        corpus=f"{RESULTS}/corpora/{{corpus}}.parquet",
        encoder=encoder_folder,
    output:
        embeddings=f"{RESULTS}/embeddings/{{encoder}}/{{corpus}}{{part}}.parquet",
    log:
        f"{RESULTS}/logs/embed_corpus/{{encoder}}/{{corpus}}{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embed_corpus/{{encoder}}/{{corpus}}{{part}}.tsv"
    group:
        grouped("embed_corpus")
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_encoder()
    resources:
        **resources_for("embed_corpus"),
    params:
        spec=spec("embed_corpus"),
    script:
        "../workflow_scripts/embeddings/embed_corpus.py"


rule score_pairs:
    """Score every training example and every subset for every test example, in one pass."""
    input:
        unpack(inputs_of_unstored),
        train=corpus_of("train"),
        test=corpus_of("test"),
        subsets=f"{RESULTS}/subsets/{{evaluation}}.parquet",
        validation=f"{RESULTS}/subsets/{{evaluation}}.validation.parquet",
        train_embeddings=train_embeddings,
        test_embeddings=test_embeddings,
        chosen=chosen_pooling,
    output:
        scores=f"{RESULTS}/scores/{{method}}/{{evaluation}}.parquet",
        groups=f"{RESULTS}/groups/{{method}}/{{evaluation}}.parquet",
    log:
        f"{RESULTS}/logs/score_pairs/{{method}}/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_pairs/{{method}}/{{evaluation}}.tsv"
    wildcard_constraints:
        method=any_of(plan_of_study.methods_scored(in_parts=False, stored=True)),
    group:
        grouped("score_pairs")
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("score_pairs"),
    params:
        spec=spec("score_pairs"),
    script:
        "../workflow_scripts/scoring/score_pairs.py"


use rule score_pairs as score_pairs_by_lm with:
    wildcard_constraints:
        method=any_of(plan_of_study.methods_scored(in_parts=False, stored=False)),
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("embed_by_method"),


rule score_part:
    """Score a part of the training examples, where they are split over jobs."""
    input:
        unpack(inputs_of_unstored),
        subsets=f"{RESULTS}/subsets/{{evaluation}}.parquet",
        validation=f"{RESULTS}/subsets/{{evaluation}}.validation.parquet",
        train_embeddings=train_embeddings,
        test_embeddings=test_embeddings,
        chosen=chosen_pooling,
    output:
        scores=temp(f"{RESULTS}/scores/{{method}}/{{evaluation}}{{part}}.parquet"),
        sums=temp(f"{RESULTS}/groups/{{method}}/{{evaluation}}{{part}}.parquet"),
    log:
        f"{RESULTS}/logs/score_part/{{method}}/{{evaluation}}{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_part/{{method}}/{{evaluation}}{{part}}.tsv"
    wildcard_constraints:
        method=any_of(plan_of_study.methods_scored(in_parts=True, stored=True)),
        part=r"\.\d+of\d+",
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("score_part"),
    params:
        spec=spec("score_part"),
    script:
        "../workflow_scripts/scoring/score_part.py"


use rule score_part as score_part_by_lm with:
    wildcard_constraints:
        method=any_of(plan_of_study.unstored_methods()),
        part=r"\.\d+of\d+",
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("embed_by_method"),


rule merge_scores:
    """Put the scores of all parts together."""
    input:
        train=corpus_of("train"),
        test=corpus_of("test"),
        subsets=f"{RESULTS}/subsets/{{evaluation}}.parquet",
        validation=f"{RESULTS}/subsets/{{evaluation}}.validation.parquet",
        part_scores=of_every_part("scores"),
        part_sums=of_every_part("groups"),
        chosen=chosen_pooling,
    output:
        scores=f"{RESULTS}/scores/{{method}}/{{evaluation}}.parquet",
        groups=f"{RESULTS}/groups/{{method}}/{{evaluation}}.parquet",
    log:
        f"{RESULTS}/logs/merge_scores/{{method}}/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_scores/{{method}}/{{evaluation}}.tsv"
    wildcard_constraints:
        method=any_of(plan_of_study.methods_scored(in_parts=True)),
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("merge_scores"),
    params:
        spec=spec("merge_scores"),
    script:
        "../workflow_scripts/scoring/merge_scores.py"


rule scores:
    """Top helpful and harmful training examples and group scores, for every method and evaluation set."""
    input:
        top_lists(study.evaluations),

rule embed_corpus:
    """Embed a corpus; rows that were embedded before keep their embedding."""
    input:
        corpus=f"{RESULTS}/corpora/{{corpus}}.parquet",
        encoder=encoder_folder,
    output:
        embeddings=update(f"{RESULTS}/embeddings/{{encoder}}/{{corpus}}.parquet"),
    log:
        f"{RESULTS}/logs/embed_corpus/{{encoder}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embed_corpus/{{encoder}}/{{corpus}}.tsv"
    conda:
        "../envs/airrep.yaml"
    threads: workflow.cores
    resources:
        gpu=plan_of_study.encoder_processes(),
        processes=plan_of_study.encoder_processes(),
        mem_mb=memory("embed_corpus"),
        runtime=runtime("embed_corpus"),
    params:
        spec=spec("embed_corpus"),
    script:
        "../workflow_scripts/embed_corpus.py"


rule score_pairs:
    """Score every training example and every subset for every test example, in one pass."""
    input:
        train=corpus_of("train"),
        test=corpus_of("test"),
        subsets=f"{RESULTS}/subsets/{{evaluation}}.parquet",
        validation=f"{RESULTS}/subsets/{{evaluation}}.validation.parquet",
        train_embeddings=train_embeddings,
        test_embeddings=test_embeddings,
    output:
        scores=f"{RESULTS}/scores/{{method}}/{{evaluation}}.parquet",
        groups=f"{RESULTS}/groups/{{method}}/{{evaluation}}.parquet",
    log:
        f"{RESULTS}/logs/score_pairs/{{method}}/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_pairs/{{method}}/{{evaluation}}.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        mem_mb=memory("score_pairs"),
        runtime=runtime("score_pairs"),
    params:
        spec=spec("score_pairs"),
    script:
        "../workflow_scripts/score_pairs.py"


rule scores:
    """Top helpful and harmful training examples and group scores, for every method and evaluation set."""
    input:
        of_every_method("scores", study.evaluations),

rule resolve_dataset:
    """Find out which commit of a hub dataset the study reads, once for all its corpora."""
    output:
        resolved=f"{RESULTS}/datasets/{{dataset}}.json",
    log:
        f"{RESULTS}/logs/resolve_dataset/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/resolve_dataset/{{dataset}}.tsv"
    priority: 100
    localrule: True
    conda:
        "../envs/airrep.yaml"
    params:
        spec=spec("resolve_dataset"),
    script:
        "../workflow_scripts/corpora/resolve_dataset.py"


rule prepare_corpus:
    """Read a corpus of any known shape into prompt, response and label; bad rows go aside with a reason."""
    input:
        source_files,
        without=corpora_left_out,
        dataset=dataset_of_corpus,
    output:
        corpus=f"{RESULTS}/corpora/{{corpus}}.parquet",
        rejected=f"{RESULTS}/corpora/{{corpus}}.rejected.parquet",
    log:
        f"{RESULTS}/logs/prepare_corpus/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare_corpus/{{corpus}}.tsv"
    wildcard_constraints:
        # Not the damaged pool, which is made of another corpus.
        corpus="|".join(study.corpora),
    # The check of leaks waits for it, and is worth having before any fine-tuning starts.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("prepare_corpus"),
    params:
        spec=spec("prepare_corpus"),
    script:
        "../workflow_scripts/corpora/prepare_corpus.py"

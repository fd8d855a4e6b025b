rule check_labels:
    """Refuse experiments that ask for labels which the corpora don't have."""
    input:
        # Corpora alone: the chosen tests wait for every LM's tokens.
        corpora=labelled_corpora,
    output:
        labels=f"{RESULTS}/evaluation/labels.parquet",
    log:
        f"{RESULTS}/logs/check_labels.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_labels/study.tsv"
    # A lack of labels is worth knowing before hours are spent.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        mem_mb=memory("check_labels"),
        runtime=runtime("check_labels"),
    params:
        spec=spec("check_labels"),
    script:
        "../workflow_scripts/experiments/check_labels.py"

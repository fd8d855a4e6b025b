rule check_labels:
    """Refuse experiments that ask for labels which the corpora don't have."""
    input:
        corpora=labelled_corpora,
        validations=expand(f"{RESULTS}/subsets/{{evaluation}}.validation.parquet", evaluation=plan_of_study.labelled()),
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
        "../workflow_scripts/check_labels.py"

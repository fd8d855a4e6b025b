rule check_leaks:
    """Refuse test examples that the encoder is trained on, and report near duplicates."""
    input:
        corpus=f"{RESULTS}/corpora/{study.targets.corpus}.parquet",
        tests=[f"{RESULTS}/corpora/{evaluation.test}.parquet" for evaluation in study.evaluations.values()],
        validations=expand(f"{RESULTS}/subsets/{{evaluation}}.validation.parquet", evaluation=study.evaluations),
    output:
        leaks=f"{RESULTS}/evaluation/leaks.parquet",
    log:
        f"{RESULTS}/logs/check_leaks.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_leaks/study.tsv"
    # A leak is worth knowing before hours are spent.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        mem_mb=memory("check_leaks"),
        runtime=runtime("check_leaks"),
    params:
        spec=spec("check_leaks"),
    script:
        "../workflow_scripts/evaluation/check_leaks.py"

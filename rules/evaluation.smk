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
        "../workflow_scripts/check_leaks.py"


rule evaluate_lds:
    """Judge every method by its LDS, with interval and noise ceiling."""
    input:
        # Not read: there is no LDS where a test example has leaked.
        rules.check_leaks.output,
        groups=of_every_method("groups"),
        scores=of_every_method("scores"),
        targets=expand(f"{RESULTS}/targets/{{evaluation}}.parquet", evaluation=study.evaluations),
    output:
        lds=f"{RESULTS}/evaluation/lds.parquet",
        differences=f"{RESULTS}/evaluation/differences.parquet",
    log:
        f"{RESULTS}/logs/evaluate_lds.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_lds/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        mem_mb=memory("evaluate_lds"),
        runtime=runtime("evaluate_lds"),
    params:
        spec=spec("evaluate_lds"),
    script:
        "../workflow_scripts/evaluate_lds.py"


rule lds:
    """LDS table of every method on every evaluation set."""
    input:
        rules.evaluate_lds.output,

rule evaluate_lds:
    """Judge every method by its LDS, with interval and noise ceiling."""
    input:
        # Not read: there is no LDS where a test example has leaked.
        leaks(),
        groups=of_every_method("groups", plan_of_study.judged),
        scores=of_every_method("scores", plan_of_study.judged),
        targets=expand(f"{RESULTS}/targets/{{evaluation}}.parquet", evaluation=plan_of_study.judged),
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
        "../workflow_scripts/evaluation/evaluate_lds.py"


rule lds:
    """LDS table of every method on every evaluation set."""
    input:
        rules.evaluate_lds.output,

rule write_report:
    """Write the report: one HTML file that works offline."""
    input:
        **average(),
        config=rules.resolve_config.output.config,
        provenance=rules.resolve_config.output.provenance,
        lds=judgement("lds"),
        differences=judgement("differences"),
        influence=rules.evaluate_label_influence.output.influence,
        agreements=rules.evaluate_label_influence.output.agreements,
        training=training_log(),
        targets=expand(f"{RESULTS}/targets/{{pool}}.parquet", pool=plan_of_study.pools),
        scores=top_lists(study.evaluations),
        corpora=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=study.corpora),
        rejected=expand(f"{RESULTS}/corpora/{{corpus}}.rejected.parquet", corpus=study.corpora),
        tokens=expand(f"{RESULTS}/tokens/{{corpus}}.parquet", corpus=plan_of_study.tokenized_corpora()),
        rejected_tokens=expand(
            f"{RESULTS}/tokens/{{corpus}}.rejected.parquet", corpus=plan_of_study.tokenized_corpora()
        ),
        experiments=experiment_tables(),
    output:
        report=report(
            f"{RESULTS}/report.html",
            caption="../docs/captions/report.rst",
            category="Results",
            labels={"figure": "Report and explorer"},
        ),
        lds_table=report(
            f"{RESULTS}/tables/lds.csv",
            caption="../docs/captions/lds.rst",
            category="Results",
            labels={"figure": "LDS of every method"},
        ),
        training_table=report(
            f"{RESULTS}/tables/training.csv",
            caption="../docs/captions/training.rst",
            category="Encoder",
            labels={"figure": "Validations"},
        ),
        costs_table=report(
            f"{RESULTS}/tables/costs.csv",
            caption="../docs/captions/costs.rst",
            category="Cost",
            labels={"figure": "Cost by stage"},
        ),
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("write_report"),
    params:
        spec=spec("write_report"),
    script:
        "../workflow_scripts/report/write_report.py"


rule report:
    """The report."""
    input:
        rules.write_report.output,

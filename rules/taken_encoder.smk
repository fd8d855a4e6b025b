rule take_encoder:
    """Take an encoder that is trained already."""
    input:
        # Not read by these names: their age tells whether a local encoder has changed.
        plan_of_study.encoder_files(),
        **snapshot(plan_of_study.snapshot_of_encoder("")),
    output:
        encoder=directory(f"{RESULTS}/encoder"),
    log:
        f"{RESULTS}/logs/take_encoder.log",
    benchmark:
        f"{RESULTS}/benchmarks/take_encoder/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        mem_mb=memory("take_encoder"),
        runtime=runtime("take_encoder"),
    params:
        spec=spec("take_encoder"),
    script:
        "../workflow_scripts/encoder/take_encoder.py"


rule encoder:
    """The encoder, as a sentence-transformers folder."""
    input:
        rules.take_encoder.output,

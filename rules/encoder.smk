rule init_encoder:
    """Make the encoder before training."""
    input:
        unpack(inputs_of_untrained_encoder),
    output:
        encoder=directory(f"{RESULTS}/encoder_untrained{{variant}}"),
    log:
        f"{RESULTS}/logs/init_encoder{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/init_encoder/study{{variant}}.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        mem_mb=memory("init_encoder"),
        runtime=runtime("init_encoder"),
    params:
        spec=spec("init_encoder"),
    script:
        "../workflow_scripts/encoder/init_encoder.py"


rule train_encoder:
    """Train the encoder to rank subsets by their measured effect; the best checkpoint is kept."""
    input:
        corpus=f"{RESULTS}/corpora/{study.targets.corpus}.parquet",
        untrained=untrained_encoder,
        subsets=f"{RESULTS}/subsets/train.parquet",
        targets=f"{RESULTS}/targets/train.parquet",
    output:
        encoder=directory(f"{RESULTS}/encoder{{variant}}"),
        log=f"{RESULTS}/encoder{{variant}}.log.parquet",
    log:
        f"{RESULTS}/logs/train_encoder{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_encoder/study{{variant}}.tsv"
    conda:
        "../envs/airrep.yaml"
    threads: workflow.cores
    resources:
        gpu=plan_of_study.encoder_processes(),
        processes=plan_of_study.encoder_processes(),
        mem_mb=memory("train_encoder"),
        runtime=runtime("train_encoder"),
    params:
        spec=spec("train_encoder"),
    script:
        "../workflow_scripts/encoder/train_encoder.py"


rule encoder:
    """The trained encoder, as a sentence-transformers folder."""
    input:
        f"{RESULTS}/encoder",
        f"{RESULTS}/encoder.log.parquet",

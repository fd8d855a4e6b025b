if study.targets:

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
        priority: 2
        conda:
            "../envs/airrep.yaml"
        threads: threads_of_gpu_job(1, on_cpu=1)
        resources:
            **resources_for("init_encoder"),
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
            surrogate_subsets=predicted("subsets"),
            surrogate_targets=predicted("targets"),
        output:
            encoder=directory(f"{RESULTS}/encoder{{variant}}"),
            log=f"{RESULTS}/encoder{{variant}}.log.parquet",
        log:
            f"{RESULTS}/logs/train_encoder{{variant}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/train_encoder/study{{variant}}.tsv"
        priority: 2
        conda:
            "../envs/airrep.yaml"
        threads: threads_of_encoder()
        resources:
            **resources_for("train_encoder"),
            **tracker(),
        params:
            spec=spec("train_encoder"),
        script:
            "../workflow_scripts/encoder/train_encoder.py"

    rule encoder:
        """The trained encoder, as a sentence-transformers folder."""
        input:
            f"{RESULTS}/encoder",
            f"{RESULTS}/encoder.log.parquet",

else:

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
            **resources_for("take_encoder"),
        params:
            spec=spec("take_encoder"),
        script:
            "../workflow_scripts/encoder/take_encoder.py"

    rule encoder:
        """The encoder, as a sentence-transformers folder."""
        input:
            rules.take_encoder.output,

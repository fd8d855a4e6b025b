rule pretrain_base_lm:
    """Make `builtin:tiny`, a small LM with a tokenizer of its own."""
    input:
        corpus=pretraining_corpus,
    output:
        model=directory(f"{RESULTS}/language_model{{lm}}"),
    log:
        f"{RESULTS}/logs/pretrain_base_lm{{lm}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain_base_lm/study{{lm}}.tsv"
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("pretrain_base_lm"),
    params:
        spec=spec("pretrain_base_lm"),
    script:
        "../workflow_scripts/language_model/pretrain_base_lm.py"


rule tokenize_corpus:
    """Turn a corpus into the LM's tokens, once for all jobs."""
    input:
        language_model=language_model_of_tokens,
        corpus=f"{RESULTS}/corpora/{{corpus}}.parquet",
    output:
        tokens=f"{RESULTS}/tokens{{lm}}/{{corpus}}.parquet",
        rejected=f"{RESULTS}/tokens{{lm}}/{{corpus}}.rejected.parquet",
    log:
        f"{RESULTS}/logs/tokenize_corpus{{lm}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tokenize_corpus{{lm}}/{{corpus}}.tsv"
    # The check of leaks waits for it, and is worth having before any fine-tuning starts.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("tokenize_corpus"),
    params:
        spec=spec("tokenize_corpus"),
    script:
        "../workflow_scripts/language_model/tokenize_corpus.py"


rule measure_losses:
    """Measure how unlikely an LM finds the answer of every row of a corpus."""
    input:
        language_model=reader_of_losses,
        tokens=f"{RESULTS}/tokens/{{corpus}}.parquet",
    output:
        losses=f"{RESULTS}/losses/{{reader}}/{{corpus}}.parquet",
    log:
        f"{RESULTS}/logs/measure_losses/{{reader}}/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_losses/{{reader}}/{{corpus}}.tsv"
    wildcard_constraints:
        reader="base_lm|warm_lm",
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("measure_losses"),
    params:
        spec=spec("measure_losses"),
    script:
        "../workflow_scripts/language_model/measure_losses.py"

rule warmup_lm:
    """Warm the base LM up: gradient methods read an LM that knows the kind of text."""
    input:
        **language_model(),
        tokens=f"{RESULTS}/tokens/{plan_of_study.warmup_corpus()}.parquet",
    output:
        warm=directory(f"{RESULTS}/language_model_warm"),
    log:
        f"{RESULTS}/logs/warmup_lm.log",
    benchmark:
        f"{RESULTS}/benchmarks/warmup_lm/study.tsv"
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("warmup_lm"),
    params:
        spec=spec("warmup_lm"),
    script:
        "../workflow_scripts/methods/warmup_lm.py"


rule fit_method:
    """Measure what a method needs before it embeds: projections, second moments, adapters."""
    input:
        unpack(inputs_of_fit),
    output:
        fitted=f"{RESULTS}/fitted/{{method}}.safetensors",
    log:
        f"{RESULTS}/logs/fit_method/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fit_method/{{method}}.tsv"
    wildcard_constraints:
        method=any_of(plan_of_study.fitted_methods()),
    group:
        grouped("fit_method")
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("fit_method"),
    params:
        spec=spec("fit_method"),
    script:
        "../workflow_scripts/methods/fit_method.py"


rule embed_by_method:
    """Embed a corpus by a method of its own; rows that were embedded before keep their embedding."""
    input:
        unpack(inputs_of_own_embeddings),
    output:
        embeddings=f"{RESULTS}/embeddings/{{embedding}}/{{corpus}}{{part}}.parquet",
    log:
        f"{RESULTS}/logs/embed_by_method/{{embedding}}/{{corpus}}{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embed_by_method/{{embedding}}/{{corpus}}{{part}}.tsv"
    wildcard_constraints:
        embedding=any_of(plan_of_study.own_embeddings()),
    group:
        grouped("embed_by_method")
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("embed_by_method"),
    params:
        spec=spec("embed_by_method"),
    script:
        "../workflow_scripts/methods/embed_by_method.py"

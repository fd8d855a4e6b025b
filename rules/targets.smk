rule sample_subsets:
    """Write down who is in which subset and validation set."""
    input:
        train_tokens=train_tokens,
        test_tokens=test_tokens,
    output:
        subsets=f"{RESULTS}/subsets/{{pool}}.parquet",
        validation=f"{RESULTS}/subsets/{{pool}}.validation.parquet",
    log:
        f"{RESULTS}/logs/sample_subsets/{{pool}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sample_subsets/{{pool}}.tsv"
    # The check of leaks waits for it, and is worth having before any fine-tuning starts.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("sample_subsets"),
    params:
        spec=spec("sample_subsets"),
    script:
        "../workflow_scripts/targets/sample_subsets.py"


rule finetune_shard:
    """Fine-tune the base LM on a block of subsets and measure each evaluated example's loss."""
    input:
        language_model=language_model_of_pool,
        train_tokens=train_tokens,
        test_tokens=test_tokens,
    output:
        # Finished runs that are still valid are reused.
        losses=f"{RESULTS}/targets/{{pool}}/{{block}}.parquet",
    log:
        f"{RESULTS}/logs/finetune_shard/{{pool}}/{{block}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune_shard/{{pool}}/{{block}}.tsv"
    priority: finetuning_first
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(plan_of_study.finetuning_processes(), on_cpu=plan_of_study.finetuning_processes())
    resources:
        **resources_for("finetune_shard"),
    params:
        spec=spec("finetune_shard"),
    script:
        "../workflow_scripts/targets/finetune_shard.py"


rule collect_targets:
    """Join the losses of a pool's jobs and turn them into labels."""
    input:
        blocks=blocks,
    output:
        targets=f"{RESULTS}/targets/{{pool}}.parquet",
    log:
        f"{RESULTS}/logs/collect_targets/{{pool}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect_targets/{{pool}}.tsv"
    wildcard_constraints:
        pool=any_of(plan_of_study.pools),
    priority: finetuning_first
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("collect_targets"),
    params:
        spec=spec("collect_targets"),
    script:
        "../workflow_scripts/targets/collect_targets.py"


rule predict_targets:
    """Predict the targets of further subsets by a method's group scores."""
    input:
        unpack(inputs_of_predicted_targets),
        subsets=f"{RESULTS}/subsets/{{pool}}.parquet",
        validation=f"{RESULTS}/subsets/{{pool}}.validation.parquet",
    output:
        targets=f"{RESULTS}/targets/{{pool}}.parquet",
    log:
        f"{RESULTS}/logs/predict_targets/{{pool}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/predict_targets/{{pool}}.tsv"
    wildcard_constraints:
        pool=any_of(plan_of_study.predicted_pools(stored=True)),
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("predict_targets"),
    params:
        spec=spec("predict_targets"),
    script:
        "../workflow_scripts/scoring/predict_targets.py"


use rule predict_targets as predict_targets_by_lm with:
    wildcard_constraints:
        pool=any_of(plan_of_study.predicted_pools(stored=False)),
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("embed_by_method"),


use rule predict_targets as predict_held_back with:
    input:
        unpack(inputs_of_held_back),
        subsets=f"{RESULTS}/subsets/train.parquet",
        validation=f"{RESULTS}/subsets/train.validation.parquet",
    output:
        targets=f"{RESULTS}/held_back/{{method}}.parquet",
    log:
        f"{RESULTS}/logs/predict_held_back/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/predict_held_back/{{method}}.tsv"
    wildcard_constraints:
        method=any_of(plan_of_study.blended_methods(stored=True)),


use rule predict_held_back as predict_held_back_by_lm with:
    wildcard_constraints:
        method=any_of(plan_of_study.blended_methods(stored=False)),
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("embed_by_method"),


rule targets:
    """Loss-delta targets that the encoder is trained on."""
    input:
        f"{RESULTS}/targets/train.parquet",
        f"{RESULTS}/subsets/train.parquet",
        f"{RESULTS}/subsets/train.validation.parquet",

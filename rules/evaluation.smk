if study.targets:

    rule check_leaks:
        """Refuse test examples that the encoder is trained on, and report near duplicates."""
        input:
            corpus=f"{RESULTS}/corpora/{study.targets.corpus}.parquet",
            tests=[f"{RESULTS}/corpora/{evaluation.test}.parquet" for evaluation in study.evaluations.values()],
            validations=expand(f"{RESULTS}/subsets/{{evaluation}}.validation.parquet", evaluation=study.evaluations),
            lm_corpora=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=plan_of_study.corpora_of_lms()),
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
            **resources_for("check_leaks"),
        params:
            spec=spec("check_leaks"),
        script:
            "../workflow_scripts/evaluation/check_leaks.py"

    rule choose_pooling:
        """Choose how a method's scores of examples are pooled, on the folds held back from the encoder."""
        input:
            unpack(inputs_of_unstored_targets),
            corpus=f"{RESULTS}/corpora/{study.targets.corpus}.parquet",
            subsets=f"{RESULTS}/subsets/train.parquet",
            targets=f"{RESULTS}/targets/train.parquet",
            train_embeddings=target_embeddings(for_tests=False),
            test_embeddings=target_embeddings(for_tests=True),
        output:
            pooling=f"{RESULTS}/poolings/{{method}}.parquet",
        log:
            f"{RESULTS}/logs/choose_pooling/{{method}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/choose_pooling/{{method}}.tsv"
        wildcard_constraints:
            method=any_of(plan_of_study.methods_with_chosen_pooling(stored=True)),
        group:
            grouped("choose_pooling")
        conda:
            "../envs/airrep.yaml"
        resources:
            **resources_for("choose_pooling"),
        params:
            spec=spec("choose_pooling"),
        script:
            "../workflow_scripts/evaluation/choose_pooling.py"

    use rule choose_pooling as choose_pooling_by_lm with:
        wildcard_constraints:
            method=any_of(plan_of_study.methods_with_chosen_pooling(stored=False)),
        threads: threads_of_gpu_job(1)
        resources:
            **resources_for("embed_by_method"),

    rule weigh_blend:
        """Choose the weight of two methods in the sum of their group scores, on the same folds."""
        input:
            subsets=f"{RESULTS}/subsets/train.parquet",
            targets=f"{RESULTS}/targets/train.parquet",
            predictions=held_back_predictions,
        output:
            weights=f"{RESULTS}/blends/{{blend}}.parquet",
        log:
            f"{RESULTS}/logs/weigh_blend/{{blend}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/weigh_blend/{{blend}}.tsv"
        wildcard_constraints:
            blend=any_of(map(re.escape, study.scoring.blends)),
        conda:
            "../envs/airrep.yaml"
        resources:
            **resources_for("weigh_blend"),
        params:
            spec=spec("weigh_blend"),
        script:
            "../workflow_scripts/evaluation/weigh_blend.py"

    rule score_blend:
        """Top examples of each test by the sum of two methods' scores, where the blend has top lists."""
        input:
            unpack(inputs_of_blend),
            train=corpus_of("train"),
            test=corpus_of("test"),
            validation=f"{RESULTS}/subsets/{{evaluation}}.validation.parquet",
            weights=rules.weigh_blend.output.weights,
        output:
            scores=f"{RESULTS}/scores/{{blend}}/{{evaluation}}.parquet",
        log:
            f"{RESULTS}/logs/score_blend/{{blend}}/{{evaluation}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/score_blend/{{blend}}/{{evaluation}}.tsv"
        wildcard_constraints:
            blend=any_of(map(re.escape, study.listed_blends)),
        conda:
            "../envs/airrep.yaml"
        resources:
            **resources_for("score_blend"),
        params:
            spec=spec("score_blend"),
        script:
            "../workflow_scripts/evaluation/score_blend.py"


if plan_of_study.lds_evaluations:

    rule evaluate_lds:
        """Judge every method by its LDS, with interval and noise ceiling."""
        input:
            # Not read: there is no LDS where a test example has leaked.
            leaks(),
            groups=of_every_method("groups", plan_of_study.lds_evaluations),
            scores=of_every_method("scores", plan_of_study.lds_evaluations),
            targets=expand(f"{RESULTS}/targets/{{evaluation}}.parquet", evaluation=plan_of_study.lds_evaluations),
            poolings=expand(
                f"{RESULTS}/poolings/{{method}}.parquet", method=plan_of_study.methods_with_chosen_pooling()
            ),
            blends=expand(f"{RESULTS}/blends/{{blend}}.parquet", blend=study.scoring.blends),
        output:
            **average(),
            lds=f"{RESULTS}/evaluation/lds.parquet",
            differences=f"{RESULTS}/evaluation/differences.parquet",
        log:
            f"{RESULTS}/logs/evaluate_lds.log",
        benchmark:
            f"{RESULTS}/benchmarks/evaluate_lds/study.tsv"
        conda:
            "../envs/airrep.yaml"
        resources:
            **resources_for("evaluate_lds"),
        params:
            spec=spec("evaluate_lds"),
        script:
            "../workflow_scripts/evaluation/evaluate_lds.py"

    rule lds:
        """LDS table of every method on every evaluation set."""
        input:
            rules.evaluate_lds.output,


rule evaluate_label_influence:
    """Which labels of training rows help which labels of tests: predicted by every method, and measured."""
    input:
        # Not read: nothing is judged where a test example has leaked.
        leaks(),
        corpora=corpora_of_all(study.evaluations),
        validations=expand(f"{RESULTS}/subsets/{{evaluation}}.validation.parquet", evaluation=study.evaluations),
        scores=of_every_method("scores", study.evaluations),
        embeddings=embeddings_of_all(),
        subsets=expand(f"{RESULTS}/subsets/{{evaluation}}.parquet", evaluation=plan_of_study.lds_evaluations),
        targets=expand(f"{RESULTS}/targets/{{evaluation}}.parquet", evaluation=plan_of_study.lds_evaluations),
    output:
        influence=f"{RESULTS}/evaluation/label_influence.parquet",
        agreements=f"{RESULTS}/evaluation/label_agreement.parquet",
    log:
        f"{RESULTS}/logs/evaluate_label_influence.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_label_influence/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_label_influence"),
    params:
        spec=spec("evaluate_label_influence"),
    script:
        "../workflow_scripts/evaluation/evaluate_label_influence.py"

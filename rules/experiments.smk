# The paper's experiments beside the LDS. A study has those that its `experiments` names.


if plan_of_study.labelled():

    rule check_labels:
        """Refuse experiments that ask for labels which the corpora don't have."""
        input:
            # Corpora alone: the chosen tests wait for every LM's tokens.
            corpora=labelled_corpora,
        output:
            labels=f"{RESULTS}/evaluation/labels.parquet",
        log:
            f"{RESULTS}/logs/check_labels.log",
        benchmark:
            f"{RESULTS}/benchmarks/check_labels/study.tsv"
        # A lack of labels is worth knowing before hours are spent.
        priority: 100
        conda:
            "../envs/airrep.yaml"
        resources:
            **resources_for("check_labels"),
        params:
            spec=spec("check_labels"),
        script:
            "../workflow_scripts/experiments/check_labels.py"


rule draw_base:
    """Draw the examples that an experiment fine-tunes on before it leaves some out."""
    input:
        train=corpus_of_experiment("train"),
        test=corpus_of_experiment("test"),
        validation=validation_of(),
        train_tokens=train_tokens_of_experiment,
    output:
        base=f"{RESULTS}/experiments/{{experiment}}/base.parquet",
    log:
        f"{RESULTS}/logs/draw_base/{{experiment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_base/{{experiment}}.tsv"
    # A base set larger than the corpus is worth knowing of before hours are spent.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("draw_base"),
    params:
        spec=spec("draw_base"),
    script:
        "../workflow_scripts/experiments/draw_base.py"


use rule score_pairs as score_base with:
    input:
        unpack(inputs_of_unstored),
        train=corpus_of("train"),
        test=corpus_of("test"),
        subsets=f"{RESULTS}/experiments/{{experiment}}/base.parquet",
        validation=f"{RESULTS}/subsets/{{evaluation}}.validation.parquet",
        train_embeddings=train_embeddings,
        test_embeddings=test_embeddings,
        chosen=chosen_pooling,
    output:
        scores=temp(f"{RESULTS}/experiments/{{experiment}}/scores/{{method}}/{{evaluation}}.parquet"),
        groups=f"{RESULTS}/experiments/{{experiment}}/groups/{{method}}/{{evaluation}}.parquet",
    log:
        f"{RESULTS}/logs/score_base/{{experiment}}/{{method}}/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_base/{{experiment}}/{{method}}/{{evaluation}}.tsv"
    wildcard_constraints:
        # Never in parts: a base set is small.
        method=any_of(plan_of_study.stored_methods()),
    params:
        spec=spec_of_base,


use rule score_base as score_base_by_lm with:
    wildcard_constraints:
        method=any_of(plan_of_study.unstored_methods()),
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("embed_by_method"),


rule draw_leave_out:
    """Draw the groups of examples that runs do without."""
    input:
        base=f"{RESULTS}/experiments/leave_out/base.parquet",
        validation=validation_of("leave_out"),
    output:
        runs=f"{RESULTS}/experiments/leave_out/runs.parquet",
    log:
        f"{RESULTS}/logs/draw_leave_out.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_leave_out/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("draw_leave_out"),
    params:
        spec=spec("draw_leave_out"),
    script:
        "../workflow_scripts/experiments/draw_leave_out.py"


rule draw_removal:
    """Choose the examples that are removed for each test, by each method's scores and at random."""
    input:
        base=f"{RESULTS}/experiments/removal/base.parquet",
        validation=validation_of("removal"),
        groups=base_scores_of("removal"),
    output:
        runs=f"{RESULTS}/experiments/removal/runs.parquet",
    log:
        f"{RESULTS}/logs/draw_removal.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_removal/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("draw_removal"),
    params:
        spec=spec("draw_removal"),
    script:
        "../workflow_scripts/experiments/draw_removal.py"


rule draw_selection:
    """Select training data for each task, by each method's ranks and at random."""
    input:
        # Not read: there is nothing to select for where no test has a label.
        labels(),
        train=corpus_of_experiment("train", "selection"),
        test=corpus_of_experiment("test", "selection"),
        validation=validation_of("selection"),
        train_tokens=selection_pool_tokens,
        scores=scores_of("selection"),
    output:
        runs=f"{RESULTS}/experiments/selection/runs.parquet",
    log:
        f"{RESULTS}/logs/draw_selection.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_selection/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("draw_selection"),
    params:
        spec=spec("draw_selection"),
    script:
        "../workflow_scripts/experiments/draw_selection.py"


rule finetune_runs:
    """Fine-tune the LM on the lists of an experiment and measure the tests of each."""
    input:
        language_model=language_model_of_experiment,
        runs=f"{RESULTS}/experiments/{{experiment}}/runs.parquet",
        train_tokens=train_tokens_of_experiment,
        test_tokens=test_tokens_of_experiment,
    output:
        # Finished runs that are still valid are reused.
        measured=f"{RESULTS}/experiments/{{experiment}}/measured/{{job}}.parquet",
    log:
        f"{RESULTS}/logs/finetune_runs/{{experiment}}/{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune_runs/{{experiment}}/{{job}}.tsv"
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(plan_of_study.finetuning_processes(), on_cpu=plan_of_study.finetuning_processes())
    resources:
        **resources_for("finetune_runs"),
    params:
        spec=spec("finetune_runs"),
    script:
        "../workflow_scripts/experiments/finetune_runs.py"


rule evaluate_leave_out:
    """Correlate what leaving examples out does with their scores."""
    input:
        # Not read: there is no result where a test example has leaked.
        leaks(),
        base=f"{RESULTS}/experiments/leave_out/base.parquet",
        runs=rules.draw_leave_out.output.runs,
        measured=measured_of("leave_out"),
        groups=base_scores_of("leave_out"),
        blends=expand(f"{RESULTS}/blends/{{blend}}.parquet", blend=study.scoring.blends),
    output:
        table=f"{RESULTS}/evaluation/loo.parquet",
    log:
        f"{RESULTS}/logs/evaluate_leave_out.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_leave_out/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_leave_out"),
    params:
        spec=spec("evaluate_leave_out"),
    script:
        "../workflow_scripts/experiments/evaluate_leave_out.py"


rule evaluate_removal:
    """Measure the rise of a test's loss without its most helpful examples."""
    input:
        leaks(),
        runs=rules.draw_removal.output.runs,
        measured=measured_of("removal"),
    output:
        table=f"{RESULTS}/evaluation/removal.parquet",
    log:
        f"{RESULTS}/logs/evaluate_removal.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_removal/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_removal"),
    params:
        spec=spec("evaluate_removal"),
    script:
        "../workflow_scripts/experiments/evaluate_removal.py"


rule evaluate_selection:
    """Judge selected data by the answers of the LM that was fine-tuned on it."""
    input:
        leaks(),
        runs=rules.draw_selection.output.runs,
        test=corpus_of_experiment("test", "selection"),
        measured=measured_of("selection"),
    output:
        table=f"{RESULTS}/evaluation/selection.parquet",
    log:
        f"{RESULTS}/logs/evaluate_selection.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_selection/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_selection"),
    params:
        spec=spec("evaluate_selection"),
    script:
        "../workflow_scripts/experiments/evaluate_selection.py"


rule evaluate_classification:
    """Ask whether the top-ranked training example carries the test's label."""
    input:
        leaks(),
        labels(),
        scores=classified_scores,
        corpora=classified_corpora,
    output:
        table=f"{RESULTS}/evaluation/classification.parquet",
    log:
        f"{RESULTS}/logs/evaluate_classification.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_classification/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_classification"),
    params:
        spec=spec("evaluate_classification"),
    script:
        "../workflow_scripts/experiments/evaluate_classification.py"


rule evaluate_amortisation:
    """Find the corpus size from which on an encoder has paid for its training."""
    input:
        scores=scores_of("amortisation"),
        train=corpus_of_experiment("train", "amortisation"),
    output:
        table=f"{RESULTS}/evaluation/amortisation.parquet",
    log:
        f"{RESULTS}/logs/evaluate_amortisation.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_amortisation/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_amortisation"),
    params:
        spec=spec("evaluate_amortisation"),
    script:
        "../workflow_scripts/experiments/evaluate_amortisation.py"


rule draw_curated_data:
    """List the runs on curated data and on random rows."""
    input:
        selections=measured_selections,
        train=corpus_of_experiment("train", "curated_data"),
        test=corpus_of_experiment("test", "curated_data"),
        trained_on=f"{RESULTS}/corpora/{study.targets.corpus}.parquet" if study.targets else [],
        validation=validation_of("curated_data"),
        train_tokens=curated_data_tokens(0),
        test_tokens=curated_data_tokens(1),
    output:
        runs=f"{RESULTS}/experiments/curated_data/runs.parquet",
    log:
        f"{RESULTS}/logs/draw_curated_data.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_curated_data/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("draw_curated_data"),
    params:
        spec=spec("draw_curated_data"),
    script:
        "../workflow_scripts/experiments/draw_curated_data.py"


rule evaluate_curated_data:
    """Compare curated data with random rows on tests that chose nothing."""
    input:
        leaks(),
        runs=rules.draw_curated_data.output.runs,
        measured=measured_of("curated_data"),
    output:
        table=f"{RESULTS}/evaluation/curated_data.parquet",
    log:
        f"{RESULTS}/logs/evaluate_curated_data.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_curated_data/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_curated_data"),
    params:
        spec=spec("evaluate_curated_data"),
    script:
        "../workflow_scripts/experiments/evaluate_curated_data.py"


rule damage_pool:
    """Damage some rows of a pool on purpose."""
    input:
        train=corpus_of_experiment("train", "detection"),
        test=corpus_of_experiment("test", "detection"),
        validation=validation_of("detection"),
        trained_on=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=plan_of_study.corpora_trained_on()),
    output:
        damaged=f"{RESULTS}/corpora/{DAMAGED_POOL}.parquet",
        damage=f"{RESULTS}/experiments/detection/damage.parquet",
    log:
        f"{RESULTS}/logs/damage_pool.log",
    benchmark:
        f"{RESULTS}/benchmarks/damage_pool/study.tsv"
    # A lack of rows to damage is worth knowing of before hours are spent.
    priority: 100
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("damage_pool"),
    params:
        spec=spec("damage_pool"),
    script:
        "../workflow_scripts/experiments/damage_pool.py"


rule score_harm:
    """Score the rows of a damaged pool by what they do to trusted tests."""
    input:
        train=rules.damage_pool.output.damaged,
        test=corpus_of_experiment("test", "detection"),
        validation=validation_of("detection"),
        train_embeddings=embeddings_of_damaged_pool,
        test_embeddings=trusted_test_embeddings,
    output:
        harm=f"{RESULTS}/experiments/detection/harm/{{method}}.parquet",
    log:
        f"{RESULTS}/logs/score_harm/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_harm/{{method}}.tsv"
    wildcard_constraints:
        method=any_of(plan_of_study.stored_methods()),
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("score_harm"),
    params:
        spec=spec("score_harm"),
    script:
        "../workflow_scripts/experiments/score_harm.py"


rule evaluate_detection:
    """Judge how well rankings of a damaged pool find the damaged rows."""
    input:
        leaks(),
        damage=rules.damage_pool.output.damage,
        harm=harm_of_every_method,
        losses=losses_of_damaged_pool,
    output:
        table=f"{RESULTS}/evaluation/detection.parquet",
    log:
        f"{RESULTS}/logs/evaluate_detection.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_detection/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_detection"),
    params:
        spec=spec("evaluate_detection"),
    script:
        "../workflow_scripts/experiments/evaluate_detection.py"


rule evaluate_transfer:
    """Advise whether an encoder serves another LM: reuse, fine-tune or retrain it."""
    input:
        lds=judgement("lds"),
        differences=judgement("differences"),
    output:
        table=f"{RESULTS}/evaluation/transfer.parquet",
    log:
        f"{RESULTS}/logs/evaluate_transfer.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_transfer/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("evaluate_transfer"),
    params:
        spec=spec("evaluate_transfer"),
    script:
        "../workflow_scripts/experiments/evaluate_transfer.py"


rule experiments:
    """Tables of the study's experiments."""
    input:
        experiment_tables(),

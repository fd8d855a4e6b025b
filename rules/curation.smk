rule select_examples:
    """Select rows of a corpus by their scores for the tests of an evaluation."""
    input:
        train=curated_corpus("train"),
        test=curated_corpus("test"),
        validation=curation_validation,
        scores=curation_scores,
        train_embeddings=curation_embeddings("train"),
        test_embeddings=curation_embeddings("test"),
    output:
        selection=f"{RESULTS}/curation/{{curation}}/selection.parquet",
    log:
        f"{RESULTS}/logs/select_examples/{{curation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/select_examples/{{curation}}.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("select_examples"),
    params:
        spec=spec("select_examples"),
    script:
        "../workflow_scripts/curation/select_examples.py"


rule write_curated:
    """Write the selected rows with all columns of their source: a training file, or a list for review."""
    input:
        curated_source_files,
        selection=rules.select_examples.output.selection,
        corpus=curated_corpus("train"),
        dataset=dataset_of_curated,
    output:
        curated=f"{RESULTS}/curation/{{curation}}/{{rows}}.{{form}}",
    log:
        f"{RESULTS}/logs/write_curated/{{curation}}/{{rows}}.{{form}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_curated/{{curation}}/{{rows}}.{{form}}.tsv"
    wildcard_constraints:
        rows="chosen|review",
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("write_curated"),
    params:
        spec=spec("write_curated"),
    script:
        "../workflow_scripts/curation/write_curated.py"


rule drop_rows:
    """Write a corpus without the rows that a reviewed list names."""
    input:
        curated_source_files,
        corpus=curated_corpus("train"),
        reviewed=reviewed_rows,
        dataset=dataset_of_curated,
    output:
        kept=f"{RESULTS}/curation/{{curation}}/kept.{{form}}",
    log:
        f"{RESULTS}/logs/drop_rows/{{curation}}.{{form}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/drop_rows/{{curation}}.{{form}}.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("drop_rows"),
    params:
        spec=spec("drop_rows"),
    script:
        "../workflow_scripts/curation/drop_rows.py"


rule summarize_curation:
    """Say on one page what was selected and why."""
    input:
        selection=rules.select_examples.output.selection,
        corpus=curated_corpus("train"),
        rejected=rejected_of_curated,
    output:
        summary=f"{RESULTS}/curation/{{curation}}/summary.md",
    log:
        f"{RESULTS}/logs/summarize_curation/{{curation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_curation/{{curation}}.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("summarize_curation"),
    params:
        spec=spec("summarize_curation"),
    script:
        "../workflow_scripts/curation/summarize_curation.py"


rule list_suspects:
    """List suspicious rows with their texts, and reasons that a person can check."""
    input:
        selection=rules.select_examples.output.selection,
        corpus=curated_corpus("train"),
        losses=losses_of_curated,
    output:
        suspects=f"{RESULTS}/curation/{{curation}}/suspects.parquet",
        page=f"{RESULTS}/curation/{{curation}}/suspects.md",
    log:
        f"{RESULTS}/logs/list_suspects/{{curation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/list_suspects/{{curation}}.tsv"
    wildcard_constraints:
        curation=any_of(plan_of_study.lists_for_review()),
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("list_suspects"),
    params:
        spec=spec("list_suspects"),
    script:
        "../workflow_scripts/curation/list_suspects.py"


rule suspects:
    """Suspicious rows of each list for review, with reasons."""
    input:
        suspects_of_every_list(),


rule curated:
    """Training files chosen by scores, and lists of harmful rows for review."""
    input:
        curated_files(),

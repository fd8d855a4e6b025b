rule fetch_model:
    """Fetch a model of the hub at one commit, once for all jobs, which read it without a network."""
    output:
        snapshot=directory(f"{RESULTS}/models/{{snapshot}}"),
    log:
        f"{RESULTS}/logs/fetch_model/{{snapshot}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_model/{{snapshot}}.tsv"
    # All jobs that load the model wait for it.
    priority: 100
    localrule: True
    conda:
        "../envs/airrep.yaml"
    params:
        spec=spec("fetch_model"),
    script:
        "../workflow_scripts/models/fetch_model.py"


rule fetch:
    """All that the study reads from the hub, for jobs on machines that can't reach it."""
    input:
        corpora_of_hub(),
        snapshots(),
    localrule: True

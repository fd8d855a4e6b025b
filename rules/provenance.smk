rule check_environment:
    """What a job finds on its machine: GPU, driver, torch, free disk, speed of the shared folder."""
    output:
        environment=f"{RESULTS}/environment.json",
    log:
        f"{RESULTS}/logs/check_environment.log",
    conda:
        "../envs/airrep.yaml"
    resources:
        gpu=1,
    params:
        spec=environment_spec,
    script:
        "../workflow_scripts/provenance/check_environment.py"


rule resolve_config:
    """Write every value in force, the versions, the hardware and the hashes of the data."""
    input:
        corpora=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=study.corpora),
        snapshots=snapshots(),
        datasets=datasets(),
    output:
        config=f"{RESULTS}/config.resolved.yaml",
        provenance=f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/resolve_config.log",
    benchmark:
        f"{RESULTS}/benchmarks/resolve_config/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("resolve_config"),
    params:
        spec=spec("resolve_config"),
    script:
        "../workflow_scripts/provenance/resolve_config.py"

rule resolve_config:
    """Write every value in force, the versions, the hardware and the hashes of the data."""
    input:
        corpora=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=study.corpora),
        snapshots=snapshots(),
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
        mem_mb=memory("resolve_config"),
        runtime=runtime("resolve_config"),
    params:
        spec=spec("resolve_config"),
    script:
        "../workflow_scripts/provenance/resolve_config.py"

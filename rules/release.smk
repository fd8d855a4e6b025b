rule package_encoder:
    """Put the trained encoder and its model card into one folder, ready to hand on."""
    input:
        encoder=f"{RESULTS}/encoder",
        config=rules.resolve_config.output.config,
        provenance=rules.resolve_config.output.provenance,
        lds=judgement("lds"),
    output:
        release=directory(f"{RESULTS}/release"),
    log:
        f"{RESULTS}/logs/package_encoder.log",
    benchmark:
        f"{RESULTS}/benchmarks/package_encoder/study.tsv"
    conda:
        "../envs/airrep.yaml"
    resources:
        **resources_for("package_encoder"),
    params:
        spec=spec("package_encoder"),
    script:
        "../workflow_scripts/release/package_encoder.py"


rule push_encoder:
    """Push the packaged encoder to a private repository of the hub."""
    input:
        release=rules.package_encoder.output.release,
    output:
        pushed=f"{RESULTS}/pushed.json",
    log:
        f"{RESULTS}/logs/push_encoder.log",
    benchmark:
        f"{RESULTS}/benchmarks/push_encoder/study.tsv"
    # Compute nodes often have no network.
    localrule: True
    conda:
        "../envs/airrep.yaml"
    params:
        spec=spec("push_encoder"),
    script:
        "../workflow_scripts/release/push_encoder.py"


rule release:
    """The trained encoder with its model card; on the hub too, where `release.hub` names a repository."""
    input:
        rules.package_encoder.output,
        rules.push_encoder.output if study.release.hub else [],

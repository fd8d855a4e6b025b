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

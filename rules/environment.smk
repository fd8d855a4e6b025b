def environment_spec(wildcards, resources):
    gpus = resources.get("gpu", 0) or int("gpu" in resources.get("gres", ""))
    return {"version": 1, "gpus": gpus, "require_gpu": bool(resources.get("require_gpu", 0))}


rule check_environment:
    """What a job finds on its machine: GPU, driver, torch, free disk, speed of the shared folder."""
    output:
        environment=f"{RESULTS}/environment.json",
    log:
        f"{RESULTS}/logs/check_environment.log",
    params:
        spec=environment_spec,
    script:
        "../workflow_scripts/check_environment.py"

rule run_pilot:
    """Time what a unit of each stage's work takes on this machine; it needs tens of seconds."""
    input:
        corpora=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=job_resources.corpora_at_hand()),
    output:
        pilot=f"{RESULTS}/pilot.json",
    log:
        f"{RESULTS}/logs/run_pilot.log",
    conda:
        "../envs/airrep.yaml"
    threads: threads_of_gpu_job(1)
    resources:
        **resources_for("run_pilot"),
    params:
        spec=spec("run_pilot"),
    script:
        "../workflow_scripts/plan/run_pilot.py"


rule write_plan:
    """Multiply: what each stage of the study will cost, from what the pilot found."""
    input:
        pilot=rules.run_pilot.output.pilot,
    output:
        plan=f"{RESULTS}/plan.json",
    log:
        f"{RESULTS}/logs/write_plan.log",
    localrule: True
    conda:
        "../envs/airrep.yaml"
    params:
        spec=plan_spec,
    script:
        "../workflow_scripts/plan/write_plan.py"


rule plan:
    """What every stage will cost, before it runs: shown on the screen, and in plan.json."""
    input:
        plan=rules.write_plan.output.plan,
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    conda:
        "../envs/airrep.yaml"
    params:
        spec={**stage_specs.spec("write_plan", {}), "benchmarks": f"{RESULTS}/benchmarks"},
    script:
        "../workflow_scripts/plan/show_plan.py"

# AirRep: training data attribution by a learned encoder. The stages, in the order of the pipeline.
from snakemake.utils import min_version

min_version("9.27")


# A study named by --configfile stands alone: nothing of the default is mixed into it.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/provenance.smk"
include: "rules/corpora.smk"
include: "rules/models.smk"
include: "rules/language_model.smk"
include: "rules/targets.smk"
include: "rules/encoder.smk"
include: "rules/methods.smk"
include: "rules/scores.smk"
include: "rules/evaluation.smk"


if study.targets:

    include: "rules/release.smk"


include: "rules/experiments.smk"
include: "rules/report.smk"


if study.curation:

    include: "rules/curation.smk"


include: "rules/plan.smk"


rule all:
    """Everything of the study, to the report (the default)."""
    default_target: True
    input:
        rules.report.input,
        rules.targets.input if study.targets else [],
        rules.encoder.input,
        rules.release.input if study.targets else [],
        leaks(),
        rules.curated.input if study.curation else [],

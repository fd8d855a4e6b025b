"""Record where results come from: the config in force, versions, hardware, the environment of jobs."""

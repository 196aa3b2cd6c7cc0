DEPLOYED = f".specforge/deployed-{PREFIX}.json"


# First of a run on Modal. Jobs that start beside it wait for it, and deploy by themselves where it is not asked for:
# were it their input, choosing another backend would make everything stale.
rule deploy_app:
    output:
        DEPLOYED,
    log:
        f"logs/deploy_app/{PREFIX}.log",
    priority: 100
    resources:
        mem_mb=WAITING_MB,
        local_mb=WAITING_MB,
        runtime=60,
        gpu=0,
    params:
        app=[cfg.modal.app, cfg.modal.environment],
        contained=contained(),
        place=place("deploy_app"),
    script:
        "../scripts/deploy_app.py"

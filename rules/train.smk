rule run_training:
    input:
        **PATHS.cache,
        target=PATHS.target,
        target_files=PATHS.target_files,
    output:
        config=f"{PATHS.run}/draft/config.json",
        draft=f"{PATHS.run}/draft/model.safetensors",
        card=f"{PATHS.run}/draft/README.md",
        metrics=f"{PATHS.run}/metrics.jsonl",
        manifest=f"{PATHS.run}/manifest.json",
    log:
        f"logs/run_training/{PREFIX}/{{ablation}}/lr{{lr}}.log",
    threads: 1
    resources:
        **claims("run_training", cpus=1, mem_mb=2000),
        runtime=1440,
        modal_runs=here(0, 1),
    params:
        weights=loss_weights,
        settings=recipe("train"),
        placement=placement("train"),
        layers=cfg.aux_layers,
        epochs={"epochs": cfg.num_epochs},
        work=f"{PATHS.run}/.work",
        code=code_version("run_training"),
        regenerated=untracked(bool(cfg.regenerate)),
        wandb=untracked(cfg.wandb.recipe()),
        place=place("run_training"),
    script:
        "../scripts/run_training.py"

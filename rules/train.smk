rule run_training:
    input:
        **CACHE,
        target=TARGET_FILE,
    output:
        config=f"{RUN}/draft/config.json",
        draft=f"{RUN}/draft/model.safetensors",
        metrics=f"{RUN}/metrics.jsonl",
        manifest=f"{RUN}/manifest.json",
    log:
        f"logs/run_training/{PREFIX}/{{ablation}}/lr{{lr}}.log",
    resources:
        local_cpus=1,
        mem_mb=2000,
        runtime=1440,
    params:
        weights=loss_weights,
        settings=recipe("train"),
        placement=placement("train"),
        layers=cfg.aux_layers,
        epochs={"epochs": cfg.num_epochs},
        work=f"{RUN}/.work",
        code=code_version("run_training"),
        single_gpu=untracked(cfg.single_gpu),
        wandb=untracked(cfg.wandb.recipe()),
        backend=untracked(cfg.backend),
    script:
        "../scripts/run_training.py"

rule train_tiny_target:
    input:
        source="datasets/{name}_train.jsonl",
    output:
        receipt="checkpoints/targets/tiny-{name}/target.json",
        weights="checkpoints/targets/tiny-{name}/model.safetensors",
    log:
        "logs/train_tiny_target/{name}.log",
    threads: 2
    resources:
        local_cpus=2,
        mem_mb=3000,
        runtime=30,
    params:
        settings=recipe("tiny_target"),
        max_length=cfg.max_length,
        work="checkpoints/targets/tiny-{name}/.work",
        code=code_version("train_tiny_target"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/train_tiny_target.py"


rule download_model:
    output:
        receipt="checkpoints/targets/{target}/target.json",
    log:
        "logs/download_model/{target}.log",
    wildcard_constraints:
        target=rf"(?!tiny-){NAME}",
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        model=cfg.target_model,
        skip_download=untracked(cfg.skip_download),
        code=code_version("download_model"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/download_model.py"

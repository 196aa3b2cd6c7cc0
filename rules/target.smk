rule train_tiny_target:
    input:
        source="datasets/{name}_train.jsonl",
    output:
        **tiny_target("tiny-{name}"),
        receipt="checkpoints/targets/tiny-{name}/target.json",
    log:
        "logs/train_tiny_target/{name}.log",
    threads: 2
    resources:
        **claims("train_tiny_target", cpus=2, mem_mb=3000),
        runtime=30,
    params:
        settings=recipe("tiny_target"),
        max_length=cfg.max_length,
        work="checkpoints/targets/tiny-{name}/.work",
        code=code_version("train_tiny_target"),
        place=place("train_tiny_target"),
    script:
        "../scripts/train_tiny_target.py"


rule download_model:
    input:
        files=local_model(cfg.target_model),
    output:
        receipt="checkpoints/targets/{target}/target.json",
    log:
        "logs/download_model/{target}.log",
    wildcard_constraints:
        target=rf"(?!tiny-){NAME}",
    threads: 1
    resources:
        **claims("download_model", cpus=0, mem_mb=2000),
        runtime=240,
    params:
        model=cfg.target_model,
        skip_download=untracked(cfg.skip_download),
        code=code_version("download_model"),
        place=place("download_model"),
    script:
        "../scripts/download_model.py"

rule prep_dataset:
    input:
        source=ancient(source_input(cfg.dataset)),
    output:
        **HELD_OUT,
        train=f"datasets/{DATASET}_train.jsonl",
        rejected=f"datasets/{DATASET}_rejected.jsonl",
        summary=f"datasets/{DATASET}_prep.json",
    log:
        f"logs/prep_dataset/{DATASET}.log",
    resources:
        local_cpus=1,
        mem_mb=2000,
        runtime=120,
    params:
        dataset=cfg.dataset,
        version=source_version(cfg.dataset),
        sample_size=cfg.sample_size,
        split_eval=cfg.split_eval,
        seed={"seed": cfg.seed},
        settings=recipe("prepare"),
        code=code_version("prep_dataset"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/prep_dataset.py"


rule regenerate_shard:
    input:
        source=f"datasets/{DATASET}_train.jsonl",
        target=TARGET_FILE,
    output:
        receipt=SHARD,
    log:
        f"logs/regenerate_shard/{PREFIX}/{{shard}}-of-{SHARDS}.log",
    wildcard_constraints:
        shard=r"\d+",
    threads: 2
    resources:
        local_cpus=2,
        mem_mb=4000,
        runtime=1440,
    params:
        settings=recipe("regenerate"),
        placement=placement("regenerate"),
        work=f"datasets/{PREFIX}/.work",
        # that of the rule which joins them: both must find one work folder
        code=code_version("regenerate_dataset"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/regenerate_shard.py"


rule regenerate_dataset:
    input:
        source=f"datasets/{DATASET}_train.jsonl",
        target=TARGET_FILE,
        shards=[SHARD.format(shard=n) for n in range(SHARDS) if SHARDS > 1],
    output:
        data=REGENERATED,
        errors=f"datasets/{PREFIX}/{DATASET}_errors.jsonl",
        summary=f"datasets/{PREFIX}/{DATASET}_regenerated.json",
    log:
        f"logs/regenerate_dataset/{PREFIX}.log",
    threads: 2
    resources:
        local_cpus=2,
        mem_mb=4000,
        runtime=1440,
    params:
        settings=recipe("regenerate"),
        placement=placement("regenerate"),
        work=f"datasets/{PREFIX}/.work",
        code=code_version("regenerate_dataset"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/regenerate_dataset.py"


rule preprocess_dataset:
    input:
        source=REGENERATED,
        target=TARGET_FILE,
    output:
        **CACHE,
    log:
        f"logs/preprocess_dataset/{PREFIX}.log",
    resources:
        local_cpus=1,
        mem_mb=2000,
        runtime=240,
    params:
        settings=recipe("preprocess"),
        max_length=cfg.max_length,
        code=code_version("preprocess_dataset"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/preprocess_dataset.py"

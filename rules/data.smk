rule prep_dataset:
    input:
        source=ancient(source_input(cfg.dataset)),
    output:
        **HELD_OUT,
        **PATHS.prepared,
    log:
        f"logs/prep_dataset/{cfg.dataset_name}.log",
    threads: 1
    resources:
        **claims("prep_dataset", cpus=1, mem_mb=2000),
        runtime=120,
    params:
        dataset=cfg.dataset,
        version=source_version(cfg.dataset),
        revision={"revision": cfg.dataset_revision},
        sample_size=cfg.sample_size,
        split_eval=cfg.split_eval,
        seed={"seed": cfg.seed},
        settings=recipe("prepare"),
        code=code_version("prep_dataset"),
        place=place("prep_dataset"),
    script:
        "../scripts/prep_dataset.py"


rule regenerate_shard:
    input:
        source=PATHS.prepared["train"],
        target=PATHS.target,
        target_files=PATHS.target_files,
    output:
        receipt=PATHS.shard,
    log:
        f"logs/regenerate_shard/{PREFIX}/{{shard}}-of-{cfg.shards}.log",
    wildcard_constraints:
        shard=r"\d+",
    threads: 2
    resources:
        **claims("regenerate_shard", cpus=2, mem_mb=4000),
        runtime=1440,
    params:
        settings=recipe("regenerate"),
        chat=CHAT.recipe(),
        template=untracked(CHAT.text),
        placement=placement("regenerate"),
        work=PATHS.regeneration_work,
        # that of the rule which joins them: both must find one work folder
        code=code_version("regenerate_dataset"),
        place=place("regenerate_shard"),
    script:
        "../scripts/regenerate_shard.py"


rule regenerate_dataset:
    input:
        source=PATHS.prepared["train"],
        target=PATHS.target,
        target_files=PATHS.target_files,
        shards=PATHS.shards,
    output:
        **PATHS.regenerated,
    log:
        f"logs/regenerate_dataset/{PREFIX}.log",
    threads: 2
    resources:
        **claims("regenerate_dataset", cpus=2, mem_mb=4000),
        runtime=1440,
    params:
        settings=recipe("regenerate"),
        chat=CHAT.recipe(),
        template=untracked(CHAT.text),
        placement=placement("regenerate"),
        work=PATHS.regeneration_work,
        code=code_version("regenerate_dataset"),
        place=place("regenerate_dataset"),
    script:
        "../scripts/regenerate_dataset.py"


rule preprocess_dataset:
    input:
        source=PATHS.regenerated["data"],
        target=PATHS.target,
        target_files=PATHS.target_files,
    output:
        **PATHS.cache,
    log:
        f"logs/preprocess_dataset/{PREFIX}.log",
    threads: here(PREPROCESS_CORES, 4)
    resources:
        **claims("preprocess_dataset", cpus=PREPROCESS_CORES, mem_mb=2000),
        runtime=240,
    params:
        settings=recipe("preprocess"),
        chat=CHAT.recipe(),
        template=untracked(CHAT.text),
        max_length=cfg.max_length,
        code=code_version("preprocess_dataset"),
        place=place("preprocess_dataset"),
    script:
        "../scripts/preprocess_dataset.py"

rule evaluate:
    input:
        target=TARGET_FILE,
        config=f"{RUN}/draft/config.json",
        draft=f"{RUN}/draft/model.safetensors",
        prompts=f"datasets/{DATASET}_test.jsonl",
    output:
        f"{RESULT}/eval.json",
    log:
        f"logs/evaluate/{PREFIX}/{{ablation}}/lr{{lr}}.log",
    resources:
        local_cpus=1,
        mem_mb=2000,
        runtime=240,
    params:
        settings=recipe("evaluate"),
        chat=CHAT.recipe(),
        template=untracked(CHAT.text),
        work=f"{RESULT}/.work",
        code=code_version("evaluate"),
        backend=untracked(cfg.backend),
    script:
        "../scripts/evaluate.py"


rule report:
    input:
        evaluations=each_run(f"{RESULT}/eval.json"),
        manifests=each_run(f"{RUN}/manifest.json"),
        metrics=each_run(f"{RUN}/metrics.jsonl"),
        prep=f"datasets/{DATASET}_prep.json",
        regenerate=f"datasets/{PREFIX}/{DATASET}_regenerated.json",
        cache=CACHE["summary"],
    output:
        html=report(
            f"results/{PREFIX}/report.html",
            category="Report",
            caption="../specforge/report/captions/report.rst",
        ),
        csv=report(f"results/{PREFIX}/summary.csv", category="Report"),
        accept_length_by_rate=report(
            f"results/{PREFIX}/figures/accept_length_by_rate.svg", category="Figures"
        ),
        accept_rate_by_position=report(
            f"results/{PREFIX}/figures/accept_rate_by_position.svg", category="Figures"
        ),
        training_curves=report(
            f"results/{PREFIX}/figures/training_curves.svg", category="Figures"
        ),
        ranking=report(f"results/{PREFIX}/figures/ranking.svg", category="Figures"),
    log:
        f"logs/report/{PREFIX}.log",
    resources:
        local_cpus=1,
        mem_mb=1000,
        runtime=10,
    params:
        config=cfg.recipe(),
        code=code_version("report"),
    script:
        "../scripts/report.py"

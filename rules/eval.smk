rule evaluate:
    input:
        target=PATHS.target,
        target_files=PATHS.target_files,
        config=f"{PATHS.run}/draft/config.json",
        draft=f"{PATHS.run}/draft/model.safetensors",
        prompts=PATHS.test,
    output:
        f"{PATHS.result}/eval.json",
    log:
        f"logs/evaluate/{PREFIX}/{{ablation}}/lr{{lr}}.log",
    threads: 1
    resources:
        **claims("evaluate", cpus=1, mem_mb=2000),
        runtime=240,
    params:
        settings=recipe("evaluate"),
        chat=CHAT.recipe(),
        template=untracked(CHAT.text),
        work=f"{PATHS.result}/.work",
        code=code_version("evaluate"),
        place=place("evaluate"),
    script:
        "../scripts/evaluate.py"


rule report:
    input:
        evaluations=each_run(f"{PATHS.result}/eval.json"),
        manifests=each_run(f"{PATHS.run}/manifest.json"),
        metrics=each_run(f"{PATHS.run}/metrics.jsonl"),
        prep=PATHS.prepared["summary"],
        regenerate=PATHS.regenerated["summary"],
        cache=PATHS.cache["summary"],
    output:
        html=report(
            f"{PATHS.report}/report.html",
            category="Report",
            caption="../specforge/report/captions/report.rst",
        ),
        csv=report(f"{PATHS.report}/summary.csv", category="Report"),
        accept_length_by_rate=report(
            f"{PATHS.report}/figures/accept_length_by_rate.svg", category="Figures"
        ),
        accept_rate_by_position=report(
            f"{PATHS.report}/figures/accept_rate_by_position.svg", category="Figures"
        ),
        training_curves=report(
            f"{PATHS.report}/figures/training_curves.svg", category="Figures"
        ),
        ranking=report(f"{PATHS.report}/figures/ranking.svg", category="Figures"),
    log:
        f"logs/report/{PREFIX}.log",
    resources:
        local_cpus=1,
        mem_mb=1000,
        local_mb=1000,
        runtime=10,
        gpu=0,
    params:
        config=cfg.recipe(),
        code=code_version("report"),
    script:
        "../scripts/report.py"

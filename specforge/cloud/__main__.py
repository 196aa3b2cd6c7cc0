"""`python -m specforge.cloud plan|calls|cancel|fetch|forget`: costs, running calls, their end, files."""

import argparse
import contextlib
import io
import logging
import os
import sys
from pathlib import Path

from specforge.cloud import ledger
from specforge.errors import UserError
from specforge.log import log_to

log = logging.getLogger("specforge")


def main(words: list[str] | None = None) -> int:
    """Exit status 0, or 1 after one sentence."""
    parser = argparse.ArgumentParser(prog="python -m specforge.cloud", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", help="stale jobs, GPUs, hours, dollars; takes snakemake's own arguments")
    calls = commands.add_parser("calls", help="calls started from this workspace that are not known to be over")
    cancel = commands.add_parser("cancel", help="end the calls of an experiment")
    for command in (calls, cancel):
        command.add_argument("experiment", nargs="?", help="its output_prefix, if more than one has calls")
    fetch = commands.add_parser("fetch", help="bring files here that stayed on their volume")
    fetch.add_argument("paths", nargs="+")
    fetch.add_argument("--environment", help="modal.environment, when it is not the profile's")
    forget = commands.add_parser("forget", help="have files made anew although their volume holds them")
    forget.add_argument("paths", nargs="+")
    forget.add_argument("--environment", help="as for fetch")
    options, rest = parser.parse_known_args(words)
    log_to(None)
    try:
        if options.command == "plan":
            show_plan(rest)
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        elif options.command == "fetch":
            bring(options.paths, options.environment)
        elif options.command == "forget":
            forget_files(options.paths, options.environment)
        else:
            show_calls(options.experiment, end=options.command == "cancel")
    except UserError as error:
        log.error("Error: %s", error)
        return 1
    return 0


def show_plan(words: list[str]) -> None:
    """Prints the plan of `snakemake <words>`. Raises UserError above the budget."""
    from snakemake.api import SnakemakeApi
    from snakemake.cli import parse_args, parse_config
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

    from specforge.cloud.live import is_live
    from specforge.cloud.plan import check_budget, plan, table

    _, options = parse_args(words)
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow_api = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(
                config=parse_config(options.config), configfiles=options.configfile, config_args=options.config
            ),
            snakefile=options.snakefile,
            workdir=options.directory,
        )
        dag_api = workflow_api.dag(
            DAGSettings(
                targets=options.targets,
                forcerun=options.forcerun,
                rerun_triggers=options.rerun_triggers,
                until=options.until,
                forceall=options.forceall,
                omit_from=options.omit_from,
            )
        )
        with contextlib.redirect_stdout(io.StringIO()):
            dag_api.summary()
        workflow = workflow_api._workflow  # the only way to the jobs; plan tests hold it
        cfg, jobs = workflow.globals["cfg"], list(workflow.dag.needrun_jobs())
    if cfg.backend != "modal":
        sys.stdout.write("backend is local: nothing is paid for; add --config backend=modal\n")
        return
    lines = plan(cfg, jobs, is_live)
    sys.stdout.write(table(lines) + "\n")
    check_budget(cfg, lines)


def show_calls(experiment: str | None, *, end: bool) -> None:
    """Lists the calls of an experiment, or ends them. Raises UserError in Modal's words."""
    from specforge.cloud.errors import explain
    from specforge.cloud.remote import cancel

    records = [record for record in ledger.entries() if experiment in (None, record["experiment"])]
    names = sorted({record["experiment"] for record in records})
    if end and len(names) > 1:
        raise UserError(f"calls of {', '.join(names)} run; name the one to end: cancel {names[0]}")
    for record in records:
        line = (
            f"{record['call']}  {record['experiment']}  {record['rule']}  {record['gpus'] or 'CPUs'}  {record['log']}"
        )
        if end:
            try:
                cancel(record)
            except Exception as error:
                raise explain(error, f"cancelling {record['call']}") from error
            line = f"cancelled {line}"
        sys.stdout.write(line + "\n")
    if not records:
        sys.stdout.write("no calls\n")


def bring(paths: list[str], environment: str | None) -> None:
    """Fetches files from their volumes, checked by receipt or label. Raises UserError for one that is not there."""
    from specforge.cloud.errors import explain
    from specforge.cloud.mirror import Mirror, read_receipt
    from specforge.cloud.places import spot

    mirror = Mirror(environment)
    for path in paths:
        place = spot(path)
        if place is None:
            raise UserError(f"{path} lies on no volume; paths begin with datasets/, checkpoints/ or results/.")
        try:
            receipt, stat = read_receipt(path), Path(path).stat() if Path(path).exists() else None
            facts = receipt or mirror.read_json(place.label) or mirror.unlabelled(place)
            mirror.fetch(path, facts)
            if receipt:  # of the same age as what it stood for: nothing becomes stale
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        except UserError:
            raise
        except Exception as error:
            raise explain(error, f"fetching {path}") from error
        log.info("%s (%.1f MiB)", path, Path(path).stat().st_size / 2**20)


def forget_files(paths: list[str], environment: str | None) -> None:
    """Has the next run that makes these files start a call, whatever the volume holds of an earlier one."""
    from specforge.cloud.errors import explain
    from specforge.cloud.mirror import Mirror

    try:
        Mirror(environment).distrust(paths)
    except Exception as error:
        raise explain(error, "forgetting") from error
    sys.stdout.write(f"forgotten; `snakemake ... --forcerun` makes them anew: {' '.join(paths)}\n")


if __name__ == "__main__":
    sys.exit(main())

"""The command line: parse, call, print. Exit codes: 0 done, 1 a trial failed, 2 bad input, above 128 interrupted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench import __version__
from bench.foundation import files
from bench.foundation.errors import BadInput, TrialFailed, nearest
from bench.foundation.files import make_folder
from bench.foundation.signals import Stopped, ending_cleanly

if TYPE_CHECKING:
    from bench.execution.engines.base import Engine
    from bench.execution.plan import Plan
    from bench.request.request import Request
    from bench.storage.records import Record

OUT = Path("results/runs")
BOARDS = ("table", "md", "csv", "json", "html")
KINDS = ("attacks", "defenses", "protocols", "sweeps", "datasets", "models", "engines")
OF_ENGINE = "engine."
FORMATS = ("native", "benchmark", "friendly-noise", "packed", "numpy", "metapoison")


class _Parser(argparse.ArgumentParser):
    """argparse with its complaints in one line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        with ending_cleanly():
            options = _parser().parse_args(arguments)
            return options.call(options)
    except BadInput as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except TrialFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("bench: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return error.code if isinstance(error, Stopped) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in files.NO_ROOM:
            raise
        print(f"bench: {files.no_room(error.filename or 'a temporary file', error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m bench", description="A benchmark for clean-label data poisoning.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser, metavar="VERB")

    run = verbs.add_parser("run", help="attack, defend, judge; does only what is missing")
    run.add_argument("--attack", default="gm", metavar="NAME|FILE", help="attack (default: gm)")
    run.add_argument("--poisons", type=Path, metavar="DIR", help="imported poisons, instead of an attack; see `import`")
    run.add_argument("--defense", action="append", metavar="NAME|FILE", help="defense, repeatable (default: none)")
    run.add_argument("--only", action="store_true", help="without the undefended cell and the clean control")
    run.add_argument("--json", action="store_true", help="stdout holds one JSON array of trial records, nothing else")
    _what_is_compared(run)
    _effort(run)
    _places(run)
    run.set_defaults(call=_run)

    sweep = verbs.add_parser("sweep", help="many attacks x many defenses: shows the plan, does what is missing")
    sweep.add_argument("file", nargs="?", metavar="NAME|FILE", help="sweep file, instead of attacks and defenses")
    sweep.add_argument("--attack", action="append", metavar="A,B", help="attacks, repeatable (default: gm)")
    sweep.add_argument("--defense", action="append", metavar="A,B+C", help="defenses, repeatable (default: none)")
    sweep.add_argument("--plan", action="store_true", help="show the plan only")
    sweep.add_argument("--only", action="store_true", help="without the undefended cells and the clean controls")
    sweep.add_argument("--json", action="store_true", help="stdout holds one JSON array of trial records, nothing else")
    _what_is_compared(sweep)
    _effort(sweep)
    _places(sweep)
    sweep.set_defaults(call=_sweep, protocol=None, seed=None)

    export = verbs.add_parser("export", help="write an attack's poisons for other tools; crafts what is missing")
    export.add_argument("folder", type=Path, metavar="DIR", help="new folder; gets a sub-folder for each trial")
    export.add_argument("--attack", default="gm", metavar="NAME|FILE", help="attack (default: gm)")
    export.add_argument("--format", default="native", metavar="NAME", help=f"one of {', '.join(FORMATS)}")
    _what_is_compared(export)
    _effort(export)
    export.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"output folder (default: {OUT})")
    export.set_defaults(call=_export)

    importing = verbs.add_parser(
        "import", help="read another tool's poisons, check them, keep them for `run --poisons`"
    )
    importing.add_argument("source", type=Path, metavar="SOURCE", help="a trial's folder or file, or folders 0, 1, ...")
    importing.add_argument("folder", type=Path, metavar="DIR", help="new folder")
    importing.add_argument("--format", default="auto", metavar="NAME", help=f"auto, or one of {', '.join(FORMATS)}")
    importing.add_argument(
        "--trigger", action="store_true", help="for formats that hold none: judge with the threat model's trigger"
    )
    _what_is_compared(importing)
    importing.set_defaults(call=_import)

    listing = verbs.add_parser("list", help="what can be run")
    listing.add_argument("kind", nargs="?", choices=[*KINDS])
    listing.set_defaults(call=_list)

    show = verbs.add_parser("show", help="the card and the settings of a plug-in or a protocol")
    show.add_argument("kind", choices=[kind.removesuffix("s") for kind in KINDS])
    show.add_argument("name")
    show.set_defaults(call=_show)

    board = verbs.add_parser("leaderboard", help="rank the defenses from trial records, with intervals and tests")
    board.add_argument(
        "--out", type=Path, metavar="DIR", help=f"read DIR/records (default: {OUT}, unless --records is given)"
    )
    board.add_argument("--records", type=Path, nargs="+", default=[], metavar="FILE", help="files, one record a line")
    board.add_argument("--protocol", action="append", metavar="NAME", help="only this one, repeatable (default: all)")
    board.add_argument("--baseline", default="none", metavar="DEFENSE", help="to test against (default: none)")
    board.add_argument("--format", choices=BOARDS, default="table", help=f"one of {', '.join(BOARDS)}")
    board.add_argument("--to", type=Path, metavar="FILE", help="write it there (default: print it)")
    board.set_defaults(call=_leaderboard)

    sync = verbs.add_parser("sync", help="bring MLflow in step with the records")
    _places(sync)
    sync.set_defaults(call=_sync)

    ui = verbs.add_parser("ui", help="open the MLflow UI on the right store")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--host", default="127.0.0.1")
    _places(ui)
    ui.set_defaults(call=_ui)

    check = verbs.add_parser("check", help="contract test of a plug-in")
    check.add_argument("plugin", nargs="+", metavar="NAME|FILE")
    check.set_defaults(call=_check)

    figure = verbs.add_parser("figure", help="draw a figure; without a name, list them")
    figure.add_argument("name", nargs="?", help="which figure")
    figure.add_argument("--to", type=Path, metavar="FILE", help="image: .png, .svg or .pdf (default: NAME.png)")
    figure.add_argument("--csv", type=Path, metavar="FILE", help="the numbers behind it")
    figure.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"records and store (default: {OUT})")
    figure.add_argument("--records", type=Path, metavar="FILE", help="records of a .jsonl file instead of --out")
    figure.add_argument("--attack", metavar="NAME|FILE", help="of this attack")
    figure.add_argument("--defense", action="append", metavar="NAME|FILE", help="of these defenses, repeatable")
    figure.add_argument("--trial", type=int, metavar="N", help="of this trial")
    figure.add_argument("--protocol", metavar="NAME|FILE", help="of this protocol")
    figure.add_argument("--seed", type=int, help="of this seed")
    figure.add_argument("--dataset", metavar="NAME", help="train on another data set, such as folder:PATH")
    figure.add_argument("--data", type=Path, metavar="DIR", help="where data sets look for their files")
    figure.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="train with another setting")
    figure.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    figure.set_defaults(call=_figure)

    new = verbs.add_parser("new", help="start a plug-in of your own: a file that works, and its test")
    new.add_argument("kind", choices=["attack", "defense"])
    new.add_argument("name", help="as a Python file is called, such as my_defense")
    new.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="where to write it (default: here)")
    new.set_defaults(call=_new)
    return parser


def _what_is_compared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", default="quick", metavar="NAME|FILE", help="preset (default: quick)")
    parser.add_argument("--dataset", metavar="NAME", help="another data set, such as folder:PATH")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data sets look for their files")
    parser.add_argument("--trials", metavar="N", help="trials of each cell (default: the protocol's)")
    parser.add_argument("--setups", type=Path, metavar="FILE", help="take trials from a poison_setups pickle")
    parser.add_argument("--setup", metavar="N|A..B", help="which of the listed trials (default: the first)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole study (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; see `show`")


def _effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="local", metavar="NAME", help="local, dask or slurm (default: local)")
    parser.add_argument("--address", metavar="URL", help="of the dask scheduler")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda (all GPUs), cuda:N or cuda:0,cuda:1 (default: auto)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one a core on a CPU, one a GPU)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="arithmetic threads a process (default: 1)")


def _places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"output folder (default: {OUT})")
    parser.add_argument("--tracking", metavar="URI", help="MLflow tracking URI, or none (default: sqlite under --out)")


def _sets(options: argparse.Namespace) -> list[str]:
    """What --set and --trials change of the protocol and the plug-ins."""
    own = [item for item in options.set if not item.startswith(OF_ENGINE)]
    return own + ([f"trials={options.trials}"] if options.trials is not None else [])


def _engine(options: argparse.Namespace) -> Engine:
    """Where the work is done."""
    from bench.execution import engines

    return engines.choose(
        options.engine, device=options.device, jobs=options.jobs, threads=options.threads, address=options.address,
        sets=[item for item in options.set if item.startswith(OF_ENGINE)],
    )  # fmt: skip


def _request(options: argparse.Namespace, **values: Any) -> Request:
    """What the options ask for."""
    from bench.foundation.settings import build
    from bench.request.request import Request

    return build(Request, values, "")


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the things that are compared, where they say it."""
    said = {"seed": options.seed, "dataset": options.dataset, "data": options.data, "setups": options.setups}
    said |= {"setup": options.setup, "poisons": getattr(options, "poisons", None)}
    return {key: value for key, value in said.items() if value is not None} | {"set": tuple(_sets(options))}


def _plan_and_engine(options: argparse.Namespace) -> tuple[Plan, Engine]:
    """What `run` and `export` are asked for, resolved and checked."""
    from bench.execution.plan import plan

    engine = _engine(options)
    request = _request(
        options,
        **_asked(options),
        protocols=(options.protocol,),
        attacks=(options.attack,),
        defenses=tuple(getattr(options, "defense", None) or ["none"]),
        only=getattr(options, "only", True),
    )
    return plan([request], engine.device()), engine


def _run(options: argparse.Namespace) -> int:
    from bench.views.leaderboard import leaderboard
    from bench.views.text import run_table

    plan, engine = _plan_and_engine(options)
    return _carry_out(options, plan, engine, lambda results: run_table(leaderboard(results)))


def _sweep(options: argparse.Namespace) -> int:
    from bench.execution.outline import outline
    from bench.execution.plan import plan
    from bench.foundation.progress import say

    blocks = _blocks(options)
    engine = _engine(options)
    planned = plan(blocks, engine.device())
    text = outline(planned, options.out, engine.width, say)
    if options.plan:
        print(text)
        return 0
    say(text)
    return _carry_out(options, planned, engine, lambda results: _closing(planned, results, options.out))


def _closing(plan: Plan, results: Sequence[Record], out: Path) -> str:
    """A leaderboard for every part, then what failed and why."""
    from bench.views import text
    from bench.views.leaderboard import leaderboard

    by_key = {record["key"]: record for record in results}
    blocks = []
    for part in plan.parts:
        records = [by_key[key] for key in part.victims(out)]
        blocks.append("\n".join([part.title, text.table(leaderboard(records), "none").rstrip()]))
    failed = [record for record in results if record["status"] != "done"]
    if failed:
        causes = [f"  {r['protocol']}: {r['attack']} x {r['defense']} trial {r['trial']}: {r['error']}" for r in failed]
        blocks.append("\n".join([f"{len(failed)} trials failed (the same command tries them again):", *causes]))
    return "\n\n".join(blocks)


def _blocks(options: argparse.Namespace) -> list[Request]:
    """What a sweep is asked for: of its file, if it has one, with what the command line changes in every block."""
    from bench.request import sweep_file
    from bench.science.references import split

    named = {"attacks": options.attack, "defenses": options.defense}
    if options.file is not None and (given := [f"--{key[:-1]}" for key, value in named.items() if value]):
        raise BadInput(f"{given[0]}: the sweep file names them; fix: leave {given[0]} out, or the file")
    named["protocols"] = [options.protocol] if options.protocol is not None else None
    lists = {key: [name for item in value for name in split(item)] for key, value in named.items() if value}
    changes = {**_asked(options), **{key: tuple(value) for key, value in lists.items()}}
    if options.only:
        changes["only"] = True
    if options.file is None:
        return [_request(options, **changes)]
    blocks = sweep_file.read(options.file)[0]
    return [block.changed(**{**changes, "set": (*block.set, *changes["set"])}) for block in blocks]


def _carry_out(options: argparse.Namespace, plan: Plan, engine: Engine, report: Callable[[list[Record]], str]) -> int:
    """Do the plan and print how it ended."""
    from bench.execution import runner
    from bench.foundation.progress import say
    from bench.views.mlflow.server import resolve_uri
    from bench.views.mlflow.sync import Tracker

    uri = resolve_uri(options.tracking, options.out)
    make_folder(options.out)
    tracker = Tracker(uri, options.out, say)
    try:
        results = runner.execute(
            plan, options.out, engine, say, lambda record: tracker.add(record, _image(options.out, record))
        )
    except BaseException:
        tracker.close(patience=5.0)  # whoever interrupts does not want to wait for a slow server
        raise
    tracker.close()
    if options.json:
        print(json.dumps(results, allow_nan=False))
    else:
        print(report(results))
        _where_next(options, uri)
    return 1 if any(record["status"] != "done" for record in results) else 0


def _export(options: argparse.Namespace) -> int:
    from bench.exchange import formats
    from bench.exchange.files import new_folder
    from bench.execution import runner
    from bench.foundation.progress import say

    formats.named(options.format)  # before anything is crafted
    plan, engine = _plan_and_engine(options)
    if not plan.cells[-1].attack.make.poisons_data:
        raise BadInput(f"attack '{options.attack}' poisons nothing, so there is nothing to export")
    with new_folder(options.folder) as folder:
        make_folder(options.out)
        notes: dict[str, None] = {}
        for poisons, trial in runner.craft(plan.cells[-1], options.out, engine, say):
            inside = folder / str(trial.index)
            notes |= dict.fromkeys(formats.write(inside, options.format, poisons, trial, plan.cells[-1].study.dataset))
    for note in notes:
        print(note)
    print(f"{len(plan.cells[-1].trials)} trials of {plan.cells[-1].attack.label} as {options.format}: {options.folder}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from bench.exchange import formats
    from bench.exchange.files import new_folder
    from bench.exchange.importing import interpret
    from bench.execution.plan import prepare_study

    request = _request(options, **{**_asked(options), "setup": None}, protocols=(options.protocol,))
    study, _ = prepare_study(request, options.protocol)
    found = formats.read_any(options.source, options.format, study.dataset)
    if options.setup is not None:  # a single trial's files do not say which of a list they are
        if len(found) != 1 or not options.setup.isascii() or not options.setup.isdigit():
            raise BadInput(f"--setup {options.setup}: one number, for a source that is a single trial")
        found = {int(options.setup[:9]): next(iter(found.values()))}
    with new_folder(options.folder) as folder:
        for index, one in found.items():
            lacks_target = not formats.named(one.format).holds_target
            trial = study.case(index).trial if lacks_target or study.listed is not None else None
            poisons, own, report = interpret(one, study.dataset, index, study.protocol.threat.eps, trial)
            if options.trigger:
                if poisons.shown is not None:
                    raise BadInput(f"--trigger: trial {index} of '{options.source}' brings its own images")
                poisons = dataclasses.replace(poisons, shown=study.triggered(own))
            formats.write(folder / str(index), "native", poisons, own, study.dataset)
            print(f"trial {index}: {report.line()}" + ("; target drawn as the protocol does" if lacks_target else ""))
    print(f"{len(found)} trials: {options.folder}; run them with: python -m bench run --poisons {options.folder}")
    return 0


def _image(out: Path, record: Record) -> Path:
    from bench.execution.poison_image import image_path

    return image_path(out, record["poisons"].get("key", "none"))


def _where_next(options: argparse.Namespace, uri: str | None) -> None:
    from bench.views.mlflow.book import FILTER

    place = "" if options.out == OUT else f" --out {options.out}"
    print(f"records: {options.out / 'records'}; logs of failures: {options.out / 'logs'}")
    if uri is not None:
        print(f"MLflow: {uri}; open it with: python -m bench ui{place}; filter by: {FILTER}")
    print(f"leaderboard: python -m bench leaderboard{place}")


def _list(options: argparse.Namespace) -> int:
    from bench.foundation import registry
    from bench.request import protocol_file as protocol
    from bench.request import sweep_file as sweep

    for kind in [options.kind] if options.kind else KINDS:
        print(f"{kind}:")
        if kind == "protocols":
            for name in protocol.protocol_names():
                print(f"  {name:27} {protocol.read_preset(name)[0].get('description', '')}")
            continue
        if kind == "sweeps":
            for name in sweep.names():
                print(f"  {name:27} {sweep.read(name)[1]}")
            continue
        if kind == "engines":
            for name in registry.names("engine"):
                print(f"  {name:27} {registry.find('engine', name).card}")
            continue
        for name in registry.names(kind.removesuffix("s")):
            plugin = registry.find(kind.removesuffix("s"), name)
            needs = getattr(plugin.make, "needs", ())
            knows = f" [needs {', '.join(needs)}]" if needs else ""
            variant = ", ".join(f"{key} = {value}" for key, value in plugin.variant.items())
            card = re.split(r"(?<! al)\. ", " ".join(plugin.card.split()))[0].rstrip(".")
            print(f"  {name:27} {card}{f' ({variant})' if variant else ''}{knows}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from bench.foundation import registry
    from bench.foundation.settings import describe
    from bench.request import protocol_file as protocol
    from bench.request import sweep_file as sweep

    if options.kind == "protocol":
        print(protocol.read_preset(options.name)[1].rstrip())
        return 0
    if options.kind == "sweep":
        print(sweep.read(options.name)[2].rstrip())
        return 0
    if options.kind == "engine":
        engine = registry.find("engine", options.name)
        make = engine.make
        print(f"engine {options.name}: {engine.card}")
        if hasattr(make, "Settings"):
            print(f"\nsettings, as --set engine.key=value:\n{describe(make.Settings, {})}")
        return 0
    plugin = registry.find(options.kind, options.name)
    print(f"{options.kind} {plugin.name}\n\n{inspect.cleandoc(plugin.card)}")
    if hasattr(plugin.make, "Settings"):
        print("\nsettings:")
        print(describe(plugin.make.Settings, plugin.variant) or "  none")
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    # Nothing that is imported here may import torch: this command answers in a second or two.
    from bench.foundation import files
    from bench.storage.records import read
    from bench.views import html, text
    from bench.views.leaderboard import leaderboard

    out = options.out or (None if options.records else OUT)
    folder = out / "records" if out else None
    records = read(folder, options.records, lambda line: print(line, file=sys.stderr), curves=False)
    if not records:
        raise BadInput(f"leaderboard: no records under '{out or options.records[0]}'; give --out DIR or --records FILE")
    for wanted in options.protocol or []:
        _must_be_among(wanted, "protocol", records)
    records = [record for record in records if record["protocol"] in (options.protocol or [record["protocol"]])]
    if options.baseline != "none":
        _must_be_among(options.baseline, "defense", records)
    write = {**text.FORMATS, "html": html.page}[options.format]
    board = write(leaderboard(records, options.baseline), options.baseline)
    if options.to is None:
        print(board, end="")
        return 0
    try:
        files.write_bytes(options.to, board.encode())
    except OSError as error:
        raise BadInput(f"--to: '{options.to}' cannot be written: {error.strerror}") from None
    print(f"leaderboard: {options.to}", file=sys.stderr)
    return 0


def _must_be_among(name: str, kind: str, records: Sequence[Mapping[str, Any]]) -> None:
    known = {record[kind] for record in records}
    if name not in known:
        raise BadInput(f"leaderboard: no records of {kind} '{name}'{nearest(name, known)}")


def _sync(options: argparse.Namespace) -> int:
    from bench.foundation.progress import say
    from bench.storage.records import read
    from bench.views.mlflow.book import FILTER
    from bench.views.mlflow.server import resolve_uri
    from bench.views.mlflow.sync import sync

    uri = resolve_uri(options.tracking, options.out)
    if uri is None:
        raise BadInput("sync: tracking is switched off (none); give --tracking URI")
    if not (options.out / "records").is_dir():
        raise BadInput(f"sync: no records under '{options.out}'; give --out DIR")

    def image(record: Record) -> bytes | None:
        path = _image(options.out, record)
        return path.read_bytes() if path.is_file() else None

    report = sync(read(options.out / "records", [], say), uri, options.out, image)
    print(f"{uri}: {report.cells} cells, {report.trials_new} trials logged, {report.trials_present} already there")
    print(f"to see the cells only, filter by: {FILTER}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from bench.views.mlflow.book import FILTER
    from bench.views.mlflow.server import SERVER, resolve_uri

    uri = resolve_uri(options.tracking, options.out)
    if uri is None:
        raise BadInput("ui: tracking is switched off (none); give --tracking URI")
    if uri.startswith(("http://", "https://")):
        print(f"the tracking server has the UI: {uri}")
        return 0
    if not (options.out / "mlflow.db").is_file() and options.tracking is None:
        raise BadInput(f"ui: no MLflow store under '{options.out}'; run something first, or give --out DIR")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", options.host]
    print(f"http://{options.host}:{options.port} (filter the runs by: {FILTER})", flush=True)
    for name, value in SERVER.items():
        os.environ.setdefault(name, value)
    os.execv(sys.executable, [*command, "--port", str(options.port)])


def _check(options: argparse.Namespace) -> int:
    from bench.authoring.contract import check

    failed = False
    for name in options.plugin:
        for result in check(name):
            print(f"{'ok    ' if result.passed else 'FAILED'} {result.plugin}: {result.rule}{result.detail}")
            failed |= not result.passed
    return 1 if failed else 0


def _new(options: argparse.Namespace) -> int:
    from bench.authoring.scaffold import next_steps, scaffold

    print(next_steps(options.kind, *scaffold(options.kind, options.name, options.dir)))
    return 0


def _figure(options: argparse.Namespace) -> int:
    from bench.figures import canvas
    from bench.figures.request import Request
    from bench.foundation.registry import find, names

    if options.name is None:
        for name in names("figure"):
            print(f"  {name:16} {find('figure', name).card}")
        return 0
    if options.trial is not None and options.trial < 0:
        raise BadInput(f"--trial {options.trial}; allowed: 0 and more")
    request = Request(
        options.out, options.records, options.protocol, tuple(options.set), options.dataset, options.data,
        options.seed, options.device, options.attack, tuple(options.defense or ()), options.trial,
    )  # fmt: skip
    to = options.to or Path(f"{options.name}.png")
    print(f"{canvas.make(options.name, request, to, options.csv)}\n{to}")
    return 0

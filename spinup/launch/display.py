"""Terminal output of a grid: its parameters, the plan, progress, and the closing table.

On a terminal, each running variant has one line, which is updated in place. Elsewhere (in a file, a
pipe or a notebook), lines are printed after epochs, at most every ten seconds for each variant.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spinup.launch.processes import GRACE_SECONDS, Experiment, Outcome, Run, Watcher
from spinup.launch.progress import epochs, progress
from spinup.runs.folder import State
from spinup.runs.wording import clock, plural, short_path, short_return, with_commas

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0  # between two lines of one variant, if lines can't be updated
BAR_WIDTH = 16

# Columns of `progress` that a narrow terminal omits.
STEPS_COLUMN, SPEED_COLUMN = 1, 3

STATE_STYLES = {State.FINISHED: "green", State.INTERRUPTED: "yellow", State.FAILED: "red"}


def console() -> Console:
    """Returns a console on the current ``sys.stdout``; lines of a file or pipe aren't cut."""
    terminal = sys.stdout.isatty()
    width = None if terminal else max(160, shutil.get_terminal_size().columns)
    return Console(file=sys.stdout, force_jupyter=False, highlight=False, width=width)


# --- Before ---------------------------------------------------------------------------------------


def print_parameters(name: str, rows: Sequence[tuple[str, str, str]], variants: int, seedless: int):
    """Prints the parameters of a grid.

    Args:
        name: the grid's name.
        rows: key, shorthand and values of each parameter.
        variants: number of variants.
        seedless: number of variants if those that differ only by seed count once.
    """
    out = console()
    out.print(f"\n[bold green]Grid {escape(name)}[/]\n")
    table = Table.grid(padding=(0, 2))
    for key, shorthand, values in rows:
        table.add_row("", Text(key, "cyan"), Text(shorthand, "dim"), Text(values))
    out.print(table)
    seeds = "" if seedless == variants else f" ({seedless} without counting seeds)"
    out.print(f"\n{plural(variants, 'variant')}{seeds}\n")


def print_plan(
    experiments: Sequence[Experiment],
    root: str,
    jobs: int,
    notes: Sequence[str],
    slurm: bool = False,
):
    """Prints the variants that are about to run, their folders, and how they run.

    Args:
        experiments: the variants.
        root: the results folder.
        jobs: number of ranks that run at once.
        notes: notes to print, such as a warning about too few cores.
        slurm: whether Slurm runs the variants.
    """
    out = console()
    for note in notes if not experiments else ():
        out.print(f"[yellow]Note:[/] {escape(note)}: there is nothing to run\n", soft_wrap=True)
    if not experiments:
        return
    number = max(1, jobs // experiments[0].num_cpu)
    at_once = "one at a time" if number == 1 else f"{number} at a time"
    parts = [plural(experiments[0].num_cpu, "rank") + (" each" if len(experiments) > 1 else "")]
    if slurm:
        parts.insert(0, "submitted to Slurm")
    elif len(experiments) > 1:
        parts.insert(0, at_once)
    how = escape(f"{', '.join(parts)}, results below {short_path(root)}{os.sep}")
    out.print(f"[bold green]Plan:[/] {how}\n", soft_wrap=True)
    for experiment in experiments:
        out.print(f"  {escape(os.path.relpath(experiment.folder, root))}", soft_wrap=True)
    out.print()
    for note in notes:
        out.print(f"[yellow]Note:[/] {escape(note)}\n", soft_wrap=True)


def count_down(seconds: float) -> None:
    """Waits on a terminal, so that the user can check the plan."""
    if seconds <= 0 or not sys.stdout.isatty():
        return
    left = seconds
    while left > 0:
        print(f"\rStarting in {left:.0f} s (Ctrl-C cancels)\x1b[K", end="", flush=True)
        time.sleep(min(1.0, left))
        left -= 1.0
    print("\r\x1b[K", end="", flush=True)


# --- While it runs --------------------------------------------------------------------------------


class Display(Watcher):
    """Shows the progress of a grid.

    Args:
        total: number of variants.
    """

    def __init__(self, total: int):
        self.total = total
        self.began = time.monotonic()
        self.ends = dict.fromkeys(STATE_STYLES, 0)
        self.console = console()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ended(self, outcome: Outcome) -> None:
        """Prints how a variant ended."""
        self.ends[outcome.state] += 1
        label, style = escape(outcome.experiment.label), STATE_STYLES[outcome.state]
        text = f"{label} [{style}]{outcome.state}[/] after {clock(outcome.seconds)}"
        if outcome.state != State.FINISHED:
            log = short_path(outcome.log)
            text += escape(f": {outcome.reason} (log: {log})")
        elif outcome.status.get("return") is not None:
            text += f", last return {short_return(outcome.status['return'])}"
        self.say(text)

    def stopping(self, running: Sequence[Run]) -> None:
        """Prints that the running variants were asked to save their state and end."""
        if running:
            labels = ", ".join(run.experiment.label for run in running)
            limit = f"for at most {GRACE_SECONDS:.0f} s (Ctrl-C again kills them at once)"
            self.say(escape(f"Stopping {labels}: waiting until the state is saved, {limit}"))

    def stopped(self, outcomes: Sequence[Outcome], waiting: int) -> None:
        """Prints how the interrupted variants ended."""
        for outcome in outcomes:
            style = STATE_STYLES[outcome.state]
            reason = f": {outcome.reason}" if outcome.reason else ""
            self.say(
                f"{escape(outcome.experiment.label)} [{style}]{outcome.state}[/]{escape(reason)}"
            )
        if waiting:
            self.say(f"{plural(waiting, 'variant')} had not started")
        self.say("Continue with the same command and --resume")

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, soft_wrap=True)


class PlainDisplay(Display):
    """Prints lines that aren't updated, for output that isn't a terminal."""

    def __init__(self, total: int):
        super().__init__(total)
        self._shown: dict[Path, tuple[float, int]] = {}  # last line's time and epoch

    def started(self, experiment):
        self._shown[experiment.folder] = (-PLAIN_SECONDS, -1)
        number = len(self._shown)
        where = escape(short_path(experiment.log))
        self.say(f"{escape(experiment.label)} started ({number} of {self.total}), log: {where}")

    def refresh(self, running, waiting):
        now = time.monotonic() - self.began
        for run in running:
            shown_at, shown_epoch = self._shown[run.experiment.folder]
            if now - shown_at < PLAIN_SECONDS:
                continue
            status = run.status()
            if status.get("epoch") is None or status["epoch"] <= shown_epoch:
                continue
            self._shown[run.experiment.folder] = (now, status["epoch"])
            phrases = ", ".join(filter(None, progress(status)))
            self.say(escape(f"{run.experiment.label} {phrases}"))

    def say(self, text):
        super().say(f"{escape(f'[{clock(time.monotonic() - self.began)}]')} {text}")
        sys.stdout.flush()


class LiveDisplay(Display):
    """Keeps one line per running variant up to date, for a terminal."""

    def __init__(self, total: int):
        super().__init__(total)
        self._refreshed = -REFRESH_SECONDS
        # No refresh thread: the processes must be started by a thread that outlives them.
        self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *_):
        self._live.stop()

    def refresh(self, running, waiting):
        now = time.monotonic()
        if now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        self._live.update(self._lines(running, waiting), refresh=True)

    def _lines(self, running, waiting):
        shown = running[: self.console.size.height - 3]  # lines beyond the screen can't be updated
        hidden = len(running) - len(shown)
        tally = self._tally(len(running), hidden, waiting)
        return Group(live_table([run_line(run) for run in shown], self.console.width), tally)

    def _tally(self, running, hidden, waiting):
        parts = [f"{running} running"]
        if hidden:
            parts[0] += f" ({hidden} not shown)"
        parts += [f"{number} {state}" for state, number in self.ends.items() if number]
        parts += [f"{waiting} waiting"] if waiting else []
        return Text(f"{', '.join(parts)}, {clock(time.monotonic() - self.began)} so far", "dim")


def run_line(run: Run) -> tuple[str, float | None, list[str]]:
    """Returns a running variant's label, the fraction done or None, and its `progress`."""
    status = run.status()
    label = run.experiment.label
    if status.get("epoch") is None:
        return label, None, [str(State.STARTING), "", "", "", clock(run.seconds)]
    steps, total = status.get("steps") or 0, status.get("total_steps")
    return label, min(1.0, steps / total) if total else None, progress(status)


def live_table(lines: Sequence[tuple[str, float | None, list[str]]], width: int) -> Table:
    """Arranges the lines of running variants in columns that fit a terminal.

    Args:
        lines: the result of `run_line` for each variant.
        width: width of the terminal. If it is narrow, the bar, the steps and the speed are omitted
            in this order. Then labels are shortened in the middle, because seeds are at the end.
    """
    columns = list(zip(*(phrases for _, _, phrases in lines)))
    kept, bar = list(range(len(columns))), True

    def room():
        taken = sum(max(map(len, columns[i])) + 2 for i in kept)
        return width - taken - (BAR_WIDTH + 2 if bar else 0)

    longest = max((len(label) for label, _, _ in lines), default=0)
    if room() < longest:
        bar = False
    for column in (STEPS_COLUMN, SPEED_COLUMN):
        if kept and room() < min(longest, 30):
            kept.remove(column)
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(1 + bar):
        table.add_column(no_wrap=True)
    for _ in kept:
        table.add_column(no_wrap=True, justify="right")
    for label, fraction, phrases in lines:
        bars = [ProgressBar(1.0, fraction or 0.0, width=BAR_WIDTH)] if bar else []
        cells = [Text(phrases[i]) for i in kept]
        table.add_row(Text(shortened(label, max(8, room())), "cyan"), *bars, *cells)
    return table


def shortened(text: str, width: int) -> str:
    """Shortens a text in the middle if it is too long.

    Example:
        >>> shortened("demo_hid64-64_s10", 11)
        'demo_…4_s10'
    """
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return text[: width - 1 - end] + "…" + text[len(text) - end :]


def make_display(total: int) -> Display:
    """Returns a `LiveDisplay` if ``sys.stdout`` is a terminal, else a `PlainDisplay`."""
    return (LiveDisplay if sys.stdout.isatty() else PlainDisplay)(total)


# --- After ----------------------------------------------------------------------------------------


def print_outcomes(outcomes: Sequence[Outcome], root: str) -> None:
    """Prints the closing table, and the reason and the log of each variant that didn't finish.

    Args:
        outcomes: the outcomes of all variants.
        root: the results folder.
    """
    out = console()
    failed = [outcome for outcome in outcomes if outcome.state != State.FINISHED]
    tally = f"{len(outcomes) - len(failed)} of {plural(len(outcomes), 'run')} finished"
    title = f"{tally}, results below {escape(short_path(root))}{os.sep}"
    table = Table(title=title, title_style="bold", title_justify="left", box=None)
    table.add_column("run", overflow="fold")
    for heading in ("state", "epochs", "steps", "return", "time"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    for outcome in outcomes:
        status = outcome.status
        table.add_row(
            Text(os.path.relpath(outcome.experiment.folder, root)),
            Text(outcome.state, STATE_STYLES[outcome.state]),
            epochs(status),
            with_commas(status.get("steps")),
            short_return(status.get("return")),
            clock(outcome.seconds),
        )
    out.print()
    out.print(table)
    if failed:
        out.print("\n[bold red]Not finished[/]")
    for outcome in failed:
        label, reason = escape(outcome.experiment.label), escape(outcome.reason)
        out.print(f"  {label}: {reason}", soft_wrap=True)
        out.print(f"    [dim]log:[/] {escape(short_path(outcome.log))}", soft_wrap=True)


def print_submitted(job: str, number: int, folder: str) -> None:
    """Prints the commands that follow and stop an array of jobs in Slurm.

    Args:
        job: id of the array.
        number: number of variants.
        folder: the results folder, or the common beginning of several folders' names.
    """
    out = console()
    where = quoted(folder if os.path.isdir(folder) else os.path.dirname(folder))
    out.print(f"[bold green]Submitted[/] {plural(number, 'variant')} as job {job}\n")
    for verb, command in (
        ("Follow", f"{_python()} -m spinup.run status {where}"),
        ("Queue", f"squeue --job {job}"),
        ("Stop", f"scancel {job}"),
    ):
        out.print(f"{verb + ':':8}[green]{escape(command)}[/]", soft_wrap=True)


def print_commands(plot: str | None, watch: str | None) -> None:
    """Prints the commands that plot results and show the trained agent.

    Args:
        plot: argument of ``plot``: a folder that ends in a separator, or the common beginning of
            several folders' names.
        watch: run folder of the agent to watch.
    """
    out = console()
    out.print()
    for verb, command, target in (("Plot", "plot", plot), ("Watch", "test_policy", watch)):
        if target is not None:
            line = escape(f"{_python()} -m spinup.run {command} {quoted(target)}")
            out.print(f"{verb + ':':7}[green]{line}[/]", soft_wrap=True)


def _python():
    """Returns the name of the running interpreter, quoted for a shell."""
    found = shutil.which("python")
    is_first = found and os.path.dirname(found) == os.path.dirname(sys.executable)
    return "python" if is_first else quoted(sys.executable)


def quoted(path: str) -> str:
    """Returns a path quoted for a shell; a separator at its end is kept."""
    end = os.sep if path.endswith(os.sep) else ""
    return shlex.quote(short_path(path) + end)

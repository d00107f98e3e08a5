"""Learning curves: reads run folders, averages over seeds, and draws.

A run folder contains `progress.txt` (tab-separated, one line per epoch) and `config.json`. Runs
with the same `exp_name` differ only in their seed, and are drawn as one curve: the mean over runs,
with a band for its 95% bootstrap interval. Where some of the runs have ended, the mean is over
fewer runs. The curve is interrupted there, and continues as a thin line.

    python -m spinup.run plot data/ppo data/sac --smooth 5 --save curves.png
"""

import contextlib
import difflib
import functools
import io
import json
import numbers
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt  # picks no backend before the first figure
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from spinup.cli.parser import Parser
from spinup.runs.folder import CONFIG, PROGRESS
from spinup.runs.wording import one_line

ESTIMATORS = ("mean", "median", "max", "min")
DEFAULT_FILE = "plot.png"
# Curves beyond the ten colours use the colours again, with the next of these patterns.
DASHES = ("", (1, 1.2), (5, 1.5), (5, 1.5, 1, 1.5))
FEWER_RUNS = "fewer runs"
THIN = 1.0  # line width in points where the mean is over fewer runs
FILE_BACKENDS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
LABELS = {
    "TotalEnvInteracts": "environment steps",
    "Epoch": "epoch",
    "Time": "wall-clock time (s)",
    "Performance": "average return",
    "AverageEpRet": "average return",
    "AverageTestEpRet": "average test return",
    "EpLen": "episode length (steps)",
    "TestEpLen": "test episode length (steps)",
    "Entropy": "entropy (nats)",
    "KL": "KL divergence (nats)",
    "LossPi": "policy loss",
    "LossV": "value loss",
    "LossQ": "Q loss",
}


def plot_data(
    data: Sequence[pd.DataFrame] | pd.DataFrame,
    xaxis: str = "Epoch",
    value: str = "AverageEpRet",
    condition: str = "Condition1",
    smooth: int = 1,
    **kwargs: Any,
) -> Axes:
    """Draws one column of the runs against another, with one curve per condition.

    It draws into `ax=` if given, else into the current axes, or into new axes in spinup's style.

    Args:
        data: runs, as returned by `get_datasets`. They are not modified.
        xaxis: the column on the x axis. If the x values of a condition's runs differ (wall-clock
            time), the runs are interpolated at the x values of the longest run. Where fewer runs
            than elsewhere have values (they end earlier, or start later), the curve is interrupted
            and thin.
        value: the column on the y axis. Rows in which it is NaN (no episode ended in this epoch)
            are ignored in averages and in smoothing.
        condition: the column whose values distinguish the curves.
        smooth: width of the centred moving average in rows (epochs), at least 1.
        **kwargs: keyword arguments of `seaborn.lineplot`, such as `estimator="median"`.

    Returns:
        The axes.

    Raises:
        ValueError: a column is missing or contains no number, or an argument is out of range.
    """
    table = _tidy(data, xaxis, value, condition, smooth)
    has_axes = "ax" in kwargs or (plt.get_fignums() and plt.gcf().axes)
    with contextlib.nullcontext() if has_axes else _style(font_scale=1.5):
        axes = kwargs.pop("ax", None) or plt.gca()
        _draw(axes, table, xaxis, value, **kwargs)
    return axes


def get_datasets(logdir: str, condition: str | None = None) -> list[pd.DataFrame]:
    """Reads every run in and below a folder.

    Args:
        logdir: the folder.
        condition: name of the runs' condition. By default, the condition of a run is `exp_name` in
            its `config.json`, or else the name of its folder without the seed (`demo` for
            `demo_s0`).

    Returns:
        One data frame per run, with the columns of `progress.txt`, `Unit` (number of the run within
        its condition), `Condition1` (the condition), `Condition2` (the condition and the number of
        the run) and `Performance` (`AverageTestEpRet` if it exists, else `AverageEpRet`).

        If the runs are in several environments, `Condition1` contains the environment, so that runs
        in different environments aren't averaged.

    Raises:
        ValueError: there is no `progress.txt` in or below the folder.
    """
    return _label(_read_runs(logdir, condition))


def get_all_datasets(
    all_logdirs: Sequence[str],
    legend: Sequence[str] | None = None,
    select: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[pd.DataFrame]:
    """Reads every run in several folders.

    Args:
        all_logdirs: folders, or beginnings of their names: `data/demo` finds `data/demo` and
            `data/demo2`, but `data/demo/` finds only the first.
        legend: a name for each folder found.
        select: only use folders whose path contains all of these texts.
        exclude: only use folders whose path contains none of these texts.

    Returns:
        One data frame per run, as returned by `get_datasets`. Runs that are found twice are
        included once.

    Raises:
        ValueError: nothing was found, or the numbers of names and folders differ.
    """
    folders = _choose_folders(all_logdirs, _as_list(select), _as_list(exclude))
    names = _as_list(legend)
    if names and len(names) != len(folders):
        raise ValueError(f"{len(names)} legend names for {len(folders)} folders: {folders}")
    runs: dict = {}
    for folder, name in zip(folders, names or [None] * len(folders)):
        here = _read_runs(folder, name)
        print(f"{folder!r}: {len(here)} run{'s' * (len(here) != 1)}")
        for run in here:
            runs.setdefault((os.path.realpath(run.folder), run.name), run)
    if not runs:
        raise ValueError(f"no epoch has been logged yet in {folders}")
    return _label(runs.values())


def make_plots(
    all_logdirs: Sequence[str],
    legend: Sequence[str] | None = None,
    xaxis: str | None = None,
    values: str | Sequence[str] | None = None,
    count: bool = False,
    font_scale: float = 1.5,
    smooth: int = 1,
    select: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    estimator: str = "mean",
    save: str | None = None,
) -> "Figures":
    """Draws the runs in some folders: a figure per value, a curve per condition.

    Args:
        all_logdirs: folders, or beginnings of their names; see `get_all_datasets`.
        legend: a name for each folder found.
        xaxis: the column on the x axis, by default `TotalEnvInteracts`.
        values: one or several columns for the y axis, by default `Performance`.
        count: draw each run instead of the mean over runs.
        font_scale: scale of the text; 1.5 suits a figure that is shown at half its size.
        smooth: width of the centred moving average in epochs, at least 1.
        select: only use folders whose path contains all of these texts.
        exclude: only use folders whose path contains none of these texts.
        estimator: the statistic over runs that the curve shows: mean, median, max or min.
        save: a file to write instead of showing the figures; its suffix sets the format. With
            several values, the name of the value is appended to the file's name.

    Returns:
        A list of figures, which a notebook displays.

    Raises:
        ValueError: nothing was found, a column is missing, or an argument is out of range.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r}: expected one of {', '.join(ESTIMATORS)}")
    xaxis, values = xaxis or "TotalEnvInteracts", _as_list(values) or ["Performance"]
    condition = "Condition2" if count else "Condition1"
    data = get_all_datasets(all_logdirs, legend, select, exclude)
    tables = [_tidy(data, xaxis, value, condition, smooth) for value in values]
    figures = Figures()
    with _style(font_scale):
        for value, table in zip(values, tables):
            figure = _new_figure(apart=bool(save))
            _draw(figure.subplots(), table, xaxis, value, estimator=estimator)
            figures.append(figure)
    if save:
        _save(figures, values, save)
    elif _can_show() and not _is_inline():  # a notebook shows open figures at the end of the cell
        plt.show()
    return figures


class Figures(list):
    """A list of figures, which a notebook shows as the result of a cell."""

    def _ipython_display_(self):
        if not _is_inline():  # windows have shown them already
            print(self)
            return
        from IPython.display import display

        for figure in self:
            display(figure)
            plt.close(figure)  # otherwise it appears again at the end of the cell


# fmt: off
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command `plot`: calls `make_plots` with arguments from the command line."""
    parser = Parser("plot", "Draws learning curves from run folders.")
    add = parser.add_argument
    add("logdir", nargs="+", help="folders, or beginnings of their names: data/demo also "
        "finds data/demo2, data/demo/ doesn't")
    add("--legend", "-l", nargs="*", metavar="NAME", help="a name for each folder found")
    add("--xaxis", "-x", default="TotalEnvInteracts", metavar="COLUMN",
        help="column on the x axis (%(default)s)")
    add("--value", "-y", nargs="+", default=["Performance"], metavar="COLUMN",
        help="columns on the y axis, one figure each (Performance: the return of test episodes if "
        "there are any, else of training episodes)")
    add("--count", action="store_true", help="draw each run instead of the mean over runs")
    add("--smooth", "-s", type=int, default=1, metavar="EPOCHS", help="width of a moving average")
    add("--select", nargs="*", metavar="TEXT", help="only folders whose path has all of these")
    add("--exclude", nargs="*", metavar="TEXT", help="only folders whose path has none of these")
    add("--est", default="mean", help=f"statistic over runs: {', '.join(ESTIMATORS)}")
    add("--save", metavar="FILE", help="write a file instead of opening a window; without a "
        f"display the file is {DEFAULT_FILE}")
    args = parser.parse_args(argv)
    try:
        figures = make_plots(
            args.logdir, args.legend, args.xaxis, args.value, args.count, smooth=args.smooth,
            select=args.select, exclude=args.exclude, estimator=args.est, save=args.save,
        )
        if not args.save and not _can_show():
            print("there is no display for a window: writing a file (--save FILE names it)")
            _save(figures, args.value, DEFAULT_FILE)
    except (ValueError, OSError) as error:
        parser.error(one_line(error))
    return 0
# fmt: on


# --- Reading ---


class _Run(NamedTuple):
    folder: str
    name: str  # of the condition
    is_named: bool  # by the caller, not by the run itself
    env_id: str | None
    table: pd.DataFrame


def _as_list(value):
    return [value] if isinstance(value, (str, os.PathLike)) else list(value or [])


def _choose_folders(logdirs, select, exclude):
    found = {}
    for logdir in _as_list(logdirs):
        for folder in _find_folders(logdir):
            found.setdefault(os.path.realpath(folder), folder)
    folders = [f for f in found.values() if all(s in f for s in select)]
    folders = [f for f in folders if not any(s in f for s in exclude)]
    if not folders:
        raise ValueError(
            f"{select=} and {exclude=} leave none of the folders {list(found.values())}"
        )
    return folders


def _find_folders(logdir):
    """Returns one folder for an exact name ('data/', '..'), else all that begin with the name."""
    logdir = os.path.expanduser(os.fspath(logdir))
    parent, prefix = os.path.split(logdir)
    if not os.path.isdir(parent or os.curdir):
        raise ValueError(f"no folder {parent!r} (looking for runs in {logdir!r})")
    if logdir and prefix in ("", os.curdir, os.pardir):
        return [logdir]
    there = sorted((e.name for e in os.scandir(parent or os.curdir) if e.is_dir()), key=_natural)
    matches = [name for name in there if name.startswith(prefix)]
    if not prefix or not matches:
        near = difflib.get_close_matches(prefix, there, n=8, cutoff=0.5) or there[:8]
        raise ValueError(
            f"no folder whose name starts with {prefix!r} in {parent or os.curdir!r}; "
            f"there are {near or 'no folders there'}"
        )
    return [os.path.join(parent, name) for name in matches]


def _natural(name):
    """Returns a sort key that sorts `v2` before `v10`."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts]


def _read_runs(logdir, condition):
    """Returns a `_Run` for each progress.txt with at least one row."""
    runs, found = [], False
    for root, folders, files in os.walk(logdir):
        folders.sort(key=_natural)  # os.walk visits the folders in the order of this list
        if PROGRESS not in files:
            continue
        found = True
        table = _read_progress(os.path.join(root, PROGRESS))
        if table is not None:
            name, env_id = _read_config(root)
            runs.append(_Run(root, str(condition or name), bool(condition), env_id, table))
    if not found:
        raise ValueError(
            f"no progress.txt in {os.fspath(logdir)!r} or below it; "
            "exclude it, or end the intended name with a slash"
        )
    return runs


def _read_text(path):
    if not os.path.isfile(path):  # a pipe would never end
        raise OSError("not a regular file")
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _read_progress(path):
    try:
        *lines, _ = _read_text(path).split("\n")  # the rest is empty or an incomplete line
        width = lines[0].count("\t") if lines else 0
        whole = [line for line in lines if line.count("\t") == width]
        if len(whole) < 2:
            print(f"{path!r}: nothing logged yet, skipped")
            return None
        # Only the last line may be incomplete without a note
        if len(whole) < len(lines) - 1:
            print(f"{path!r}: skipped {len(lines) - len(whole)} incomplete lines")
        return pd.read_csv(io.StringIO("\n".join(whole)), sep="\t", quoting=3, index_col=False)
    except (OSError, ValueError) as error:
        print(f"{path!r}: can't be read, skipped ({error})")
        return None


def _read_config(folder):
    """Returns the name of the experiment (from config.json or the folder) and its environment."""
    name = env_id = None
    # RecursionError: brackets nested too deeply. AttributeError and later: JSON of another form.
    broken = (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError)
    with contextlib.suppress(*broken):
        config = json.loads(_read_text(os.path.join(folder, CONFIG)))
        name = config.get("exp_name")
        env_id = config["env"]["id"]
    if not isinstance(name, str) or not name.strip():
        name = re.sub(r"_s\d+$", "", os.path.basename(os.path.abspath(folder)))
    return _printable(name), _printable(env_id) if isinstance(env_id, str) else None


def _printable(text):
    return "".join(c if c.isprintable() else "?" for c in text)


def _label(runs):
    runs = list(runs)
    env_ids = list(dict.fromkeys(run.env_id for run in runs if run.env_id))
    if len(env_ids) > 1:
        print(f"these runs are in {len(env_ids)} environments, whose returns can't be compared: "
              f"{', '.join(env_ids)}")  # fmt: skip
    units, labelled = Counter(), []
    for index, run in enumerate(runs):
        condition, table = run.name, run.table
        if len(env_ids) > 1 and run.env_id and not run.is_named:
            is_named = run.env_id.lower() in condition.lower()
            condition += "" if is_named else f" ({run.env_id})"
        names = {"Unit": units[condition], "Condition1": condition}
        names["Condition2"] = f"{condition}-{index}"
        for column in ("AverageEpRet", "AverageTestEpRet"):
            if column in table:
                names["Performance"] = table[column]
        units[condition] += 1
        labelled.append(table.assign(**names))
    return labelled


# --- Numbers ---


def _tidy(data, xaxis, value, condition, smooth):
    """Returns a table of x, smoothed y, condition and part for all runs; see `_curve`."""
    if not isinstance(smooth, numbers.Integral) or smooth < 1:
        raise ValueError(f"smooth={smooth!r}: expected a whole number of epochs, at least 1")
    if isinstance(data, pd.DataFrame):  # several runs in one table, as from pandas.concat
        runs = data.groupby("Condition2", sort=False) if "Condition2" in data else [("", data)]
        data = [run for _, run in runs]
    data = [run for run in data if len(run)]
    if not data:
        raise ValueError("no runs to draw")
    _check_columns(data, xaxis, value, condition)
    runs = {}
    for run in data:
        # Matplotlib omits names that begin with _ from the legend
        name = re.sub("^_", " _", str(run[condition].iloc[0])) if condition in run else "?"
        runs.setdefault(name, []).append(run)
    tables = [t for name in runs for t in _curve(name, runs[name], xaxis, value, smooth)]
    if not tables:
        raise ValueError(f"nothing to draw: no number in {value!r} over {xaxis!r} yet")
    return pd.concat(tables, ignore_index=True)


def _check_columns(data, xaxis, value, condition):
    available = {str(column) for run in data for column in run}
    for column in (xaxis, value, condition):
        if column not in available:
            if column != condition:
                available -= {"Unit", "Condition1", "Condition2"}
            near = difflib.get_close_matches(str(column), available, n=1)
            meant = f": did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"no column {column!r}; there are {', '.join(sorted(available))}{meant}"
            )


def _curve(name, runs, xaxis, value, smooth):
    """Returns tables of x, y, condition and part; part is 0 where the number of runs is largest."""
    curves = [
        (_finite(run[xaxis]), _smoothed(_finite(run[value]), smooth))
        for run in runs
        if {xaxis, value} <= set(run)
    ]
    curves = [(x, y) for x, y in curves if np.isfinite(x + y).any()]
    left_out = len(runs) - len(curves)
    if left_out:
        of = f"all {len(runs)}" if not curves else f"{left_out} of {len(runs)}"
        print(f"{name!r}: left out {of} runs: no number in {value!r} over {xaxis!r}")
    tables = []
    for x, y in _on_one_grid(curves):
        tables.append(pd.DataFrame({"x": x, "y": y}).dropna().sort_values("x"))
    x = np.unique(np.concatenate([table["x"] for table in tables])) if tables else np.empty(0)
    # A run counts from its first number to its last, even in gaps between them.
    lives = [(table["x"].min() <= x) & (x <= table["x"].max()) for table in tables]
    changes = np.any(np.diff(lives, axis=1, prepend=False), axis=0) if tables else x
    number = np.sum(lives, axis=0)
    part = np.where(number == np.max(number, initial=0), 0, 1 + np.cumsum(changes))
    parts = dict(zip(x, part))
    return [table.assign(condition=name, part=table["x"].map(parts)) for table in tables]


def _finite(column):
    column = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    return np.where(np.isfinite(column), column, np.nan)


def _smoothed(y, width):
    """Returns the mean over the `width` values around each value, ignoring NaN."""
    if width == 1:
        return y
    window = np.ones(min(width, 2 * len(y) + 1))
    around = slice((len(window) - 1) // 2, (len(window) - 1) // 2 + len(y))
    total = np.convolve(np.nan_to_num(y), window)[around]
    count = np.convolve(np.isfinite(y), window)[around]
    return np.divide(total, count, out=np.full(len(y), np.nan), where=count > 0.5)


def _on_one_grid(curves):
    """Interpolates the runs at the x values of the longest run, unless they already share them."""
    if not curves:
        return []
    grid = max((x for x, _ in curves), key=len)
    if all(np.array_equal(x, grid[: len(x)], equal_nan=True) for x, _ in curves):
        return curves
    known = [pd.DataFrame({"x": x, "y": y}).dropna().sort_values("x") for x, y in curves]
    first, last = np.nanmin(grid), np.nanmax(grid)
    beyond = [k["x"][(k["x"] < first) | (k["x"] > last)] for k in known]
    grid = np.unique(np.concatenate([grid[np.isfinite(grid)], *beyond]))
    return [(grid, np.interp(grid, k["x"], k["y"], np.nan, np.nan)) for k in known]


def _bootstrap(values, estimator, level=95, resamples=1000):
    """Returns the same interval as seaborn, but without its loop: 40 times as fast."""
    values = np.asarray(values)
    picks = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    estimates = getattr(np, estimator)(values[picks], axis=1)
    return np.percentile(estimates, [50 - level / 2, 50 + level / 2])


# --- Drawing ---


@contextlib.contextmanager
def _style(font_scale):
    """Sets the style of figures in a block, and restores the caller's settings afterwards.

    `plt.rc_context` would restore too much: it would undo a notebook's `interactive`, which the
    first figure sets.
    """
    look = {
        **sns.axes_style("darkgrid"),
        **sns.plotting_context("notebook", font_scale=font_scale),
        "figure.figsize": (8, 5),
        "figure.constrained_layout.use": True,
        "lines.linewidth": 2,
    }
    before = {key: plt.rcParams[key] for key in look}
    plt.rcParams.update(look)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def _new_figure(apart):
    """Returns a figure of pyplot, or, if `apart`, one that pyplot doesn't show."""
    if apart:
        return Figure()
    try:
        return plt.figure()
    except ImportError:  # MPLBACKEND names a window system that isn't there
        plt.switch_backend("agg")
        return plt.figure()


def _can_show():
    """Returns True if pyplot can show figures in a window, a browser or a notebook."""
    backend = plt.get_backend().lower()
    if "inline" in backend:  # `!spinup plot` inherits this setting, but isn't in a notebook
        ipython = sys.modules.get("IPython")
        return ipython is not None and ipython.get_ipython() is not None
    return backend not in FILE_BACKENDS


def _is_inline():
    return "inline" in plt.get_backend().lower()


def _draw(axes, table, xaxis, value, estimator="mean", **kwargs):
    if estimator in ESTIMATORS:
        kwargs.setdefault("errorbar", functools.partial(_bootstrap, estimator=estimator))
    if kwargs.get("err_style", "band") == "band":
        kwargs.setdefault("err_kws", {"linewidth": 0})
    look, dashes = _look(table["condition"].unique())
    kwargs = {"errorbar": ("ci", 95), "seed": 0, **look, **kwargs}
    draw = functools.partial(sns.lineplot, x="x", y="y", ax=axes, estimator=estimator)
    draw(table[table["part"] == 0], hue="condition", **kwargs)
    fewer = table[table["part"] > 0]
    if len(fewer):
        pieces = fewer["condition"] + "\n" + fewer["part"].astype(str)
        pattern = {piece: dashes[piece.rpartition("\n")[0]] for piece in pieces.unique()}
        thin = {
            "style": pieces,
            "style_order": list(pattern),
            "dashes": pattern,
            "linewidth": THIN,
            "legend": False,
        }
        draw(fewer, hue="condition", **{**kwargs, **thin})
    for line in axes.lines:
        if len(line.get_xdata()) == 1:  # a line through one point is invisible
            line.set(marker="o", markersize=4 * line.get_linewidth())
    for axis, column in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        if 5e3 < table[column].abs().max() < 1e15:
            axis.set_major_formatter(EngFormatter(sep=""))  # 200k, 1M
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.get_major_ticks()  # make the ticks now, in the current style
    several = estimator in ESTIMATORS[1:] and table.duplicated(["x", "condition"]).any()
    of_runs = f"\n({estimator} of runs)" if several else ""
    # Names from files may contain dollar signs, which don't begin a formula.
    axes.set_xlabel(LABELS.get(xaxis, xaxis), parse_math=False)
    axes.set_ylabel(LABELS.get(value, value) + of_runs, parse_math=False)
    _place_legend(axes, len(fewer) > 0)


def _look(names):
    """Returns colours (and patterns if there are more curves than colours), and all patterns."""
    colours = sns.color_palette("deep")
    palette = {name: colours[i % len(colours)] for i, name in enumerate(names)}
    dashes = {n: DASHES[i // len(colours) % len(DASHES)] for i, n in enumerate(names)}
    look = {"palette": palette, "hue_order": list(names)}
    if len(names) > len(colours):
        look |= {"style": "condition", "style_order": list(names), "dashes": dashes}
    return look, dashes


def _place_legend(axes, has_thin_parts):
    """Moves the legend above the axes, or into them if the figure has several axes."""
    figure, legend = axes.figure, axes.get_legend()
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    if legend is None:  # the caller's `legend=False`
        return
    handles, texts = list(legend.legend_handles), legend.get_texts()
    names = [text.get_text() for text in texts]
    if has_thin_parts:
        handles.append(Line2D([], [], color="0.4", linewidth=THIN))
        names.append(FEWER_RUNS)
    legend.remove()
    letter = 0.65 * texts[0].get_fontsize() / 72  # inches; a digit is 0.64 of its size wide
    shares = len(figure.axes) > 1
    room = figure.get_figwidth() * (axes.get_position().width if shares else 1) / letter
    names = [_wrapped(name, int(room) - 7) for name in names]  # 7: a line and the gaps around it
    if shares:
        legend = axes.legend(handles, names)
    else:
        longest = max(len(line) for name in names for line in name.splitlines())
        columns = max(1, int(room / (longest + 7)))
        rows = -(-sum(name.count("\n") + 1 for name in names) // columns)
        if rows > 3:
            height = 4 + 2.3 * letter * rows
            figure.set_figheight(max(figure.get_figheight(), height))
        for earlier in list(figure.legends):
            earlier.remove()
        legend = figure.legend(
            handles, names, loc="outside upper left", ncols=columns, frameon=False,
            handlelength=1.5, columnspacing=1.5, borderpad=0.2,
        )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _wrapped(name, width, lines=3):
    """Breaks a long name after `_` or `-`, and shortens it in the middle if it is too long."""
    width = max(width, 16)
    half = lines * (width - 8) // 2  # lines that break early are shorter
    if len(name) > 2 * half + 1:
        name = f"{name[:half]}…{name[-half:]}"
    rows = [""]
    for part in re.findall(rf"[^\s_-]{{1,{width}}}[\s_-]?|[\s_-]", name):
        if rows[-1] and len(rows[-1]) + len(part) > width:
            rows.append("")
        rows[-1] += part
    return "\n".join(rows)


def _save(figures, values, path):
    stem, ending = os.path.splitext(os.fspath(path))
    if not os.path.basename(stem):
        raise ValueError(f"save={path!r}: expected the name of a file, such as {DEFAULT_FILE}")
    os.makedirs(os.path.dirname(stem) or os.curdir, exist_ok=True)
    for figure, value in zip(figures, values):
        part = "-" + re.sub(r"[^\w.-]", "_", value) if len(figures) > 1 else ""
        file = f"{stem}{part}{ending or '.png'}"
        figure.savefig(file, dpi=150)
        print(f"saved {file}")


if __name__ == "__main__":
    sys.exit(main())

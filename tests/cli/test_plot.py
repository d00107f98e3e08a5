import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns

from spinup.cli import plot
from spinup.cli.plot import get_all_datasets, get_datasets, main, make_plots, plot_data

NAN = float("nan")
DOCS = Path(__file__).parents[2] / "docs" / "plotting.md"


@pytest.fixture(autouse=True)
def no_windows(tmp_path, monkeypatch):
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def write_run(folder, returns, exp_name=None, **columns):
    """Writes a run folder with one line per return, and one more column per keyword."""
    steps = [1000 * (i + 1) for i in range(len(returns))]
    table = {"Epoch": range(len(returns)), "AverageEpRet": returns, "TotalEnvInteracts": steps}
    os.makedirs(folder)
    pd.DataFrame({**table, **columns}).to_csv(
        f"{folder}/progress.txt", sep="\t", index=False, na_rep="nan"
    )
    if exp_name is not None:
        Path(folder, "config.json").write_text(json.dumps({"exp_name": exp_name}))


def frame(returns, unit=0, condition="a", **columns):
    names = {"Unit": unit, "Condition1": condition, "Condition2": f"{condition}-{unit}"}
    return pd.DataFrame({"Epoch": range(len(returns)), "AverageEpRet": returns, **columns, **names})


def curves(axes):
    return [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata())]


def legend_names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- Smoothing ---


@pytest.mark.parametrize(
    "width, expected",
    [
        (1, [1, 2, 6, 7]),
        (2, [1, 1.5, 4, 6.5]),
        (3, [1.5, 3, 5, 6.5]),
        (7, [4, 4, 4, 4]),
        (10**9, [4, 4, 4, 4]),
    ],
)
def test_smoothing_is_a_centred_mean_shorter_at_the_edges(width, expected):
    assert curves(plot_data([frame([1.0, 2, 6, 7])], smooth=width)) == [expected]


@pytest.mark.parametrize("width", [2, 3, 4, 5, 8])
def test_smoothing_is_spinning_ups_where_nothing_is_missing(width):
    y, window = np.random.default_rng(0).normal(size=9), np.ones(width)
    expected = np.convolve(y, window, "same") / np.convolve(np.ones(9), window, "same")
    np.testing.assert_allclose(curves(plot_data([frame(y)], smooth=width))[0], expected)


def test_smoothing_passes_over_nan_and_infinity():
    runs = [frame([NAN, 2.0, NAN, 6.0, np.inf, NAN, NAN])]
    assert curves(plot_data(runs, smooth=3)) == [
        [2, 2, 4, 6, 6]
    ]  # the last window contains no number


@pytest.mark.parametrize("smooth", [0, -3, 2.5, "5", None])
def test_a_bad_width_is_refused(smooth):
    with pytest.raises(ValueError, match=f"smooth={smooth!r}: expected a whole number"):
        plot_data([frame([1.0, 2])], smooth=smooth)


def test_the_callers_frames_stay_as_they_are():
    runs = [frame([1.0, NAN, 6, 7])]
    before = runs[0].copy()
    plot_data(runs, smooth=3)
    pd.testing.assert_frame_equal(runs[0], before)


def test_runs_in_one_frame_are_smoothed_one_by_one():
    runs = [frame([0.0, 2, 4], unit=0), frame([10.0, 10, 10], unit=1)]
    assert curves(plot_data(pd.concat(runs), smooth=3)) == [[5.5, 6, 6.5]]


# --- Statistics ---


@pytest.mark.parametrize(
    "estimator, expected",
    [("mean", [3, 6]), ("median", [2, 5]), ("max", [6, 12]), ("min", [1, 1])],
)
def test_a_curve_is_a_statistic_over_seeds(estimator, expected):
    runs = [frame([1.0, 5], 0), frame([2.0, 12], 1), frame([6.0, 1], 2)]
    assert curves(plot_data(runs, estimator=estimator)) == [expected]


def test_a_seed_does_not_count_where_it_has_no_number():
    runs = [frame([1.0, NAN, 6, 8], 0), frame([3.0, 4, 2, 0], 1)]
    assert curves(plot_data(runs)) == [[2, 4, 4, 4]]


def test_where_runs_have_ended_or_not_begun_the_curve_is_interrupted_and_thin():
    # Without that, the mean would jump from 3 to 9 though no run does
    runs = [frame([NAN, 4.0, 6, 8, 9], 0), frame([1.0, 2, NAN], 1), frame([0.0, 0, 0, 1], 2)]
    axes = plot_data([*runs, frame([5.0] * 5, condition="whole")])
    drawn = {
        (line.get_color(), tuple(line.get_xdata())): (line.get_ydata().tolist(), line.get_lw())
        for line in axes.lines
        if len(line.get_xdata())
    }
    blue, orange = sns.color_palette("deep")[:2]
    wide = plt.rcParams["lines.linewidth"]
    assert wide > plot.THIN
    assert drawn == {
        (blue, (1,)): ([2], drawn[blue, (1,)][1]),
        (orange, (0, 1, 2, 3, 4)): ([5] * 5, drawn[orange, (0, 1, 2, 3, 4)][1]),
        (blue, (0,)): ([0.5], plot.THIN),
        (blue, (2, 3)): ([3, 4.5], plot.THIN),
        (blue, (4,)): ([9], plot.THIN),
    }
    assert drawn[blue, (1,)][1] > plot.THIN
    assert legend_names(axes.figure) == ["a", "whole", "fewer runs"]


def test_runs_of_one_length_are_one_line():
    axes = plot_data([frame([1.0, 2], 0), frame([3.0, 4], 1)])
    assert curves(axes) == [[2, 3]]
    assert legend_names(axes.figure) == ["a"]


@pytest.mark.parametrize("estimator, expected", [("max", [[9, 9], [1]]), ("min", [[0, 0], [1]])])
def test_other_statistics_are_interrupted_too(estimator, expected):
    runs = [frame([9.0, 9], 0), frame([0.0, 0, 1], 1)]
    assert curves(plot_data(runs, estimator=estimator)) == expected


@pytest.mark.parametrize("estimator", ["mean", "median", "max", "min"])
def test_the_interval_is_seaborns_bootstrap(estimator):
    values = np.random.default_rng(1).normal(size=5)
    samples = sns.algorithms.bootstrap(values, n_boot=1000, func=estimator, seed=0)
    expected = np.percentile(samples, [2.5, 97.5])
    np.testing.assert_allclose(plot._bootstrap(values, estimator), expected, rtol=1e-12)


def test_the_same_call_draws_the_same_figure():
    runs = [frame([1.0, 5, 7], 0), frame([2.0, 12, 3], 1), frame([6.0, 1, 2], 2)]
    bands = [
        plot_data(runs, ax=plt.figure().subplots()).collections[0].get_paths()[0].vertices
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*bands)
    assert bands[0][:, 1].min() < 3 < bands[0][:, 1].max()


def test_runs_over_time_are_interpolated_at_the_times_of_the_longest():
    runs = [frame([0.0, 1, 2], 0, Time=[0.0, 1, 2]), frame([10.0, 20, 30], 1, Time=[0.5, 1.5, 2.5])]
    axes = plot_data(runs, xaxis="Time")
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2], [0], [2.5]]
    assert curves(axes) == [[(1 + 15) / 2, (2 + 25) / 2], [0], [30]]


def test_a_slow_run_of_few_epochs_is_drawn_to_its_end():
    slow = frame([0.0, 9], 1, Time=[0.0, 9])
    axes = plot_data([frame([0.0, 1, 2], 0, Time=[0.0, 1, 2]), slow], xaxis="Time")
    assert curves(axes) == [[0, 1, 2], [9]]


# --- Reading ---


def test_a_run_has_the_columns_of_spinning_up():
    write_run("data/a/a_s0", [1.0, 2], "a")
    write_run("data/a/a_s1", [3.0, 4], "a", AverageTestEpRet=[5.0, 6])
    write_run("data/b/b_s0", [7.0, 8], "b")
    for _ in range(2):  # no state is kept between calls
        runs = get_all_datasets(["data/a", "data/b"])
        assert [run["Unit"][0] for run in runs] == [0, 1, 0]
        assert [run["Condition1"][0] for run in runs] == ["a", "a", "b"]
        assert [run["Condition2"][0] for run in runs] == ["a-0", "a-1", "b-2"]
        assert [run["Performance"].tolist() for run in runs] == [[1, 2], [5, 6], [7, 8]]
    named = get_datasets("data/b", "other")
    assert named[0]["Condition2"].tolist() == ["other-0", "other-0"]


HEADER = "Epoch\tAverageEpRet\tTotalEnvInteracts\n"


@pytest.mark.parametrize(
    "end, returns",
    [
        ("1\t20\t2000\n", [10, 20]),
        ("1\tnan\t2000\n", [10, NAN]),
        ("1\t20\t2000\r\n", [10, 20]),
        ("1\t20\t20", [10]),  # an incomplete 2000
        ("1\t2", [10]),
        ("1\t20\n", [10]),
        ("1\t2\n2\t30\t3000\n", [10, 30]),  # continued after an incomplete line
        ('1\t"20\t2000\n2\t30\t3000\n', [10, None, 30]),
        ("\0\0\0\t20\t2000\n", [10, 20]),
        ("", [10]),
    ],
)
def test_a_torn_line_is_dropped_alone(end, returns):
    write_run("demo_s0", [])
    Path("demo_s0/progress.txt").write_bytes((HEADER + "0\t10\t1000\n" + end).encode())
    read = pd.to_numeric(get_datasets("demo_s0")[0]["AverageEpRet"], errors="coerce")
    np.testing.assert_array_equal(read, np.array(returns, dtype=float))


@pytest.mark.parametrize("text", ["", "Epo", HEADER, HEADER + "0\t1"])
def test_a_run_that_has_just_started_is_skipped_with_a_note(text, capsys):
    write_run("data/young_s0", [])
    Path("data/young_s0/progress.txt").write_text(text)
    with pytest.raises(ValueError, match=r"no epoch has been logged yet in .*'data/young_s0'"):
        get_all_datasets(["data/young"])
    write_run("data/young_s1", [1.0, 2])
    assert len(get_all_datasets(["data/young"])) == 1
    assert "young_s0/progress.txt': nothing logged yet, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "config, name",
    [
        (b'{"exp_name": "ppo"}', "ppo"),
        (b'{"exp_name": "__import__(\'os\')"}', "__import__('os')"),
        (b'{"exp_name": "a\\nb\\ud800"}', "a?b?"),
        (b'{"exp_name": ["ppo"]}', "demo"),
        (b'{"exp_name": " "}', "demo"),
        (b'{"exp_name": "pp', "demo"),
        (b"[1, 2]", "demo"),
        (b"[" * 100_000, "demo"),
        (b"\xff\xfe\0", "demo"),
        (None, "demo"),
    ],
)
def test_without_a_readable_config_the_folder_gives_the_name(config, name):
    write_run("data/demo/demo_s10", [1.0])
    if config is not None:
        Path("data/demo/demo_s10/config.json").write_bytes(config)
    assert get_datasets("data")[0]["Condition1"].tolist() == [name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_in_place_of_a_file_is_not_read(capsys):
    for name in ("good_s0", "pipe_s0", "zero_s0"):
        write_run(f"data/{name}", [1.0])
    for name in ("progress.txt", "config.json"):
        Path("data/pipe_s0", name).unlink(missing_ok=True)
        os.mkfifo(f"data/pipe_s0/{name}")
        Path("data/zero_s0", name).unlink(missing_ok=True)
        os.symlink("/dev/zero", f"data/zero_s0/{name}")
    assert [run["Condition1"][0] for run in get_datasets("data")] == ["good"]
    assert capsys.readouterr().out.count("can't be read, skipped (not a regular file)") == 2


def test_runs_of_several_environments_are_told_apart_and_not_averaged(capsys):
    for env_id, exp_name in [
        ("CartPole-v1", "a"),
        ("Pendulum-v1", "a"),
        ("Pendulum-v1", "pendulum-v1_b"),
    ]:
        folder = f"data/{env_id}/{exp_name}"
        write_run(folder, [1.0, 2])
        config = {"exp_name": exp_name, "env": {"id": env_id}}
        Path(folder, "config.json").write_text(json.dumps(config))
    (figure,) = make_plots("data")
    assert legend_names(figure) == ["a (CartPole-v1)", "a (Pendulum-v1)", "pendulum-v1_b"]
    note = "runs are in 2 environments, whose returns can't be compared: CartPole-v1, Pendulum-v1"
    assert note in capsys.readouterr().out
    assert legend_names(make_plots("data/Pendulum-v1")[0]) == ["a", "pendulum-v1_b"]
    assert "environments" not in capsys.readouterr().out
    assert legend_names(make_plots(["data/C", "data/P"], legend=["x", "y"])[0]) == ["x", "y"]


@pytest.mark.parametrize("env", [None, {}, 3, {"id": None}, [1]])
def test_a_config_without_an_environment_is_read(env):
    write_run("data/demo/demo_s0", [1.0])
    Path("data/demo/demo_s0/config.json").write_text(json.dumps({"exp_name": "x", "env": env}))
    assert get_datasets("data")[0]["Condition1"].tolist() == ["x"]


# --- Which folders ---


@pytest.fixture
def folders():
    for name in ("demo", "demo2", "my_demo", "sac"):
        write_run(f"data/{name}/{name}_s0", [1.0, 2], name)
    Path("data/notes.txt").touch()


@pytest.mark.parametrize(
    "logdirs, names",
    [
        (["data/demo"], ["demo", "demo2"]),
        (["data/demo/"], ["demo"]),
        (["data/demo2"], ["demo2"]),
        ("data/d", ["demo", "demo2"]),
        (["data/demo", "data/demo2"], ["demo", "demo2"]),
        (["data/", "data/sac"], ["demo", "demo2", "my_demo", "sac"]),
        (["data"], ["demo", "demo2", "my_demo", "sac"]),
        (["dat"], ["demo", "demo2", "my_demo", "sac"]),
        (["."], ["demo", "demo2", "my_demo", "sac"]),
        ([Path("data/sac/sac_s0")], ["sac"]),
    ],
)
def test_a_prefix_matches_at_the_start_of_the_name(folders, logdirs, names):
    assert [run["Condition1"][0] for run in get_all_datasets(logdirs)] == names


def test_numbers_in_names_are_sorted_as_numbers():
    for number in (10, 9, 2, 1):
        write_run(f"data/v{number}/s{number}", [1.0], f"v{number}")
        write_run(f"below/v{number}", [1.0], f"v{number}")
    for logdir in ("data/v", "below"):
        found = [run["Condition1"][0] for run in get_all_datasets(logdir)]
        assert found == ["v1", "v2", "v9", "v10"]


@pytest.mark.parametrize(
    "logdir, message",
    [
        ("data/emo", r"no folder whose name starts with 'emo' in 'data'; there are \['demo'"),
        ("data/notes", "no folder whose name starts with 'notes' in 'data'; there are"),
        ("zzz", r"no folder whose name starts with 'zzz' in '\.'; there are \['data'\]"),
        ("", r"no folder whose name starts with '' in '\.'"),
        ("dota/demo", "no folder 'dota' .looking for runs in 'dota/demo'"),
        ("data/demo/demo_s0/x", "'x' in 'data/demo/demo_s0'; there are no folders there"),
        ("data/bare", "no progress.txt in 'data/bare' or below it"),
    ],
)
def test_what_finds_nothing_is_named(folders, logdir, message):
    os.makedirs("data/bare")
    with pytest.raises(ValueError, match=message):
        get_all_datasets([logdir])


def test_selecting_folders(folders):
    def names_of(**rules):
        runs = get_all_datasets(["data/d", "data/m", "data/s"], **rules)
        return [run["Condition1"][0] for run in runs]

    assert names_of(select=["demo", "2"]) == ["demo2"]
    assert names_of(select="demo", exclude=["my", "2"]) == ["demo"]
    with pytest.raises(
        ValueError, match=r"select=\['x'\] and exclude=\[\] leave none of the folders"
    ):
        names_of(select=["x"])


def test_a_legend_names_each_folder(folders):
    named = get_all_datasets(["data/demo"], legend=["A", "B"])
    assert [run["Condition1"][0] for run in named] == ["A", "B"]
    expected = r"1 legend names for 2 folders: \['data/demo', 'data/demo2'\]"
    with pytest.raises(ValueError, match=expected):
        get_all_datasets(["data/demo"], legend="A")


# --- Columns ---


def test_a_missing_column_is_named_with_the_nearest(capsys):
    runs = [frame([1.0, 2], LossPi=[3.0, 4]), frame([1.0, 2], condition="b")]
    assert curves(plot_data(runs, value="LossPi")) == [[3, 4]]
    note = "'b': left out all 1 runs: no number in 'LossPi' over 'Epoch'"
    assert note in capsys.readouterr().out
    there = "there are AverageEpRet, Epoch, LossPi"
    with pytest.raises(ValueError, match=f"^no column 'LossP'; {there}: did you mean LossPi.$"):
        plot_data(runs, value="LossP")
    with pytest.raises(ValueError, match=f"^no column 'zzzz'; {there}$"):
        plot_data(runs, xaxis="zzzz")
    with pytest.raises(ValueError, match=r"no column 'Seed'; there are .*, Condition1, .*, Unit"):
        plot_data(runs, condition="Seed")


def test_runs_without_a_number_are_named(capsys):
    runs = [frame([NAN, NAN], 0), frame([1.0, 2], 1), frame([NAN, NAN], condition="b")]
    axes = plot_data(runs)
    assert curves(axes) == [[1, 2]]  # no jump, and no thin part, for a run that never had a number
    printed = capsys.readouterr().out
    assert "'a': left out 1 of 2 runs: no number in 'AverageEpRet' over 'Epoch'" in printed
    assert "'b': left out all 1 runs: no number in 'AverageEpRet' over 'Epoch'" in printed


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no runs to draw"):
        plot_data([])
    with pytest.raises(ValueError, match="no number in 'AverageEpRet' over 'Epoch' yet"):
        plot_data([frame([NAN, NAN])])
    with pytest.raises(ValueError, match="no number in 'Condition1' over 'Epoch' yet"):
        plot_data([frame([1.0, 2])], value="Condition1")


# --- Figures ---


def test_a_figure_per_value_and_a_curve_per_experiment(folders):
    figures = make_plots(["data/demo"], values=["Performance", "AverageEpRet"], smooth=3)
    assert len(figures) == 2 and plt.get_fignums()
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("environment steps", "average return")
    assert curves(axes) == [[1.5, 1.5], [1.5, 1.5]]
    assert axes.lines[0].get_xdata().tolist() == [1000, 2000]
    assert legend_names(figures[0]) == ["demo", "demo2"]


def test_count_draws_each_run():
    write_run("a/a_s0", [1.0, 2], "a")
    write_run("a/a_s1", [3.0, 6], "a")
    assert curves(make_plots(["a/"])[0].axes[0]) == [[2, 4]]
    (figure,) = make_plots(["a/"], count=True)
    assert curves(figure.axes[0]) == [[1, 2], [3, 6]]
    assert legend_names(figure) == ["a-0", "a-1"]


def test_the_statistic_is_named_unless_it_is_the_mean():
    write_run("a/a_s0", [1.0, 2], "a")
    write_run("a/a_s1", [3.0, 6], "a")
    label = make_plots(["a/"], estimator="max")[0].axes[0].get_ylabel()
    assert label == "average return\n(max of runs)"
    with pytest.raises(ValueError, match="estimator 'std': expected one of mean, median, max, min"):
        make_plots(["a/"], estimator="std")


def test_saving_appends_the_value_where_there_are_several(folders, capsys):
    make_plots(["data/sac"], save="new/folder/curve")
    make_plots(["data/sac"], values=["Performance", "Epoch"], save="c.v1.svg")
    assert os.listdir("new/folder") == ["curve.png"]
    assert sorted(p for p in os.listdir() if p.startswith("c.")) == [
        "c.v1-Epoch.svg", "c.v1-Performance.svg",
    ]  # fmt: skip
    assert "saved c.v1-Epoch.svg" in capsys.readouterr().out
    assert not plt.get_fignums()  # nothing was drawn by pyplot


def test_settings_of_the_caller_stay(folders):
    before = dict(plt.rcParams)
    make_plots(["data/sac"])
    plot_data([frame([1.0, 2])], ax=plt.figure().subplots())
    assert dict(plt.rcParams) == before


def test_plot_data_draws_where_it_is_told():
    _, (left, right) = plt.subplots(1, 2)
    assert plot_data([frame([1.0, 2])], ax=left) is left
    assert plot_data([frame([3.0, 4])]) is right
    assert left.get_facecolor() == (1, 1, 1, 1)  # in the caller's style
    assert plt.get_fignums() == [1]


def test_large_numbers_are_short_and_one_epoch_is_visible():
    axes = plot_data([frame([1e6], TotalEnvInteracts=[200_000])], xaxis="TotalEnvInteracts")
    assert axes.xaxis.get_major_formatter()(200_000) == "200k"
    assert axes.yaxis.get_major_formatter()(1.5e6) == "1.5M"
    assert axes.lines[0].get_marker() == "o"


def test_every_curve_looks_different():
    axes = plot_data([frame([1.0, 2], condition=f"v{i}") for i in range(24)])
    lines = [line for line in axes.lines if len(line.get_xdata())]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in lines}
    assert len(lines) == len(looks) == 24
    shown = axes.figure.legends[0].get_lines()
    assert {(line.get_color(), str(line._dash_pattern)) for line in shown} == looks


def test_a_thin_part_keeps_its_curves_pattern():
    runs = [frame([1.0, 2], condition=f"v{i}") for i in range(10)]
    runs += [frame([5.0, 6, 7], condition="last"), frame([1.0], 1, condition="last")]
    axes = plot_data(runs)
    first, rest = [line for line in axes.lines if len(line.get_xdata())][-2:]
    assert (first.get_ydata().tolist(), rest.get_ydata().tolist()) == ([3], [6, 7])
    assert first.is_dashed() and rest.is_dashed()


def test_a_thin_part_keeps_its_curves_pattern_where_the_name_has_two_lines():
    name = "two\nlines"
    axes = plot_data([frame([5.0, 6, 7], condition=name), frame([1.0], 1, condition=name)])
    assert curves(axes) == [[3], [6, 7]]
    assert legend_names(axes.figure) == [name, "fewer runs"]


@pytest.mark.parametrize("shares", [False, True])
def test_long_names_stay_within_the_figure(shares):
    figure, axes = plt.subplots(1, 1 + shares, figsize=(8, 5))
    axes = figure.axes[0]
    long = "ppo_ac-hid64-64_ac-acttanh_cli0-1_gam0-99_lam0-95_pi0-0003_Norm"
    plot_data(
        [frame([1.0, 2], condition=long * i + "0" * j) for i in (1, 2, 9) for j in (0, 99)], ax=axes
    )
    figure.canvas.draw()
    legend = axes.get_legend() if shares else figure.legends[0]
    box, within = legend.get_window_extent(), figure.bbox
    assert within.x0 <= box.x0 and box.x1 <= within.x1
    assert within.y0 <= box.y0 and box.y1 <= within.y1


def test_odd_names_are_drawn_as_they_are():
    names = ["_hidden", r"$\frac{1$", "ab" * 500]
    axes = plot_data([frame([1.0, 2], condition=name) for name in names])
    axes.figure.canvas.draw()
    shown = [name.strip() for name in legend_names(axes.figure)]
    assert shown[:2] == ["_hidden", r"$\frac{1$"]
    assert re.fullmatch("(ab)+a?…b?(ab)+", shown[2].replace("\n", ""))


# --- The command ---


def test_the_command_writes_files_and_returns_zero(folders, capsys):
    assert main(["data/demo", "-l", "A", "B", "-s", "3", "--est", "median", "--save", "x.png"]) == 0
    assert Path("x.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["data/sac", "-y", "Performance", "Epoch", "--count"]) == 0  # no display: Agg
    assert Path("plot-Performance.png").exists() and Path("plot-Epoch.png").exists()
    out = capsys.readouterr().out
    assert "no display for a window: writing a file" in out
    assert "saved plot-Epoch.png" in out


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "the following arguments are required: logdir"),
        (["data/nope"], "no folder whose name starts with 'nope' in 'data'"),
        (["data/demo", "-l", "A"], "1 legend names for 2 folders"),
        (
            ["data/sac", "-y", "Perf"],
            "no column 'Perf'; there are AverageEpRet, Epoch, Performance",
        ),
        (["data/sac", "-x", "Step"], "no column 'Step'"),
        (["data/sac", "-s", "0"], "smooth=0: expected a whole number"),
        (["data/sac", "-s", "many"], "argument --smooth/-s: invalid int value: 'many'"),
        (["data/sac", "--est", "eval"], "estimator 'eval': expected one of mean, median, max, min"),
        (["data/sac", "--exclude", "sac"], "leave none of the folders ['data/sac']"),
        (["data/sac", "--save", "x.docx"], "'docx' is not supported"),
        (["data/sac", "--save", "out/"], "save='out/': expected the name of a file"),
        (["data/sac", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folders, capsys, argv, message):
    with pytest.raises(SystemExit) as error:
        main(argv)
    stderr = capsys.readouterr().err
    assert error.value.code == 2
    assert message in stderr and stderr.startswith("spinup plot: ")
    assert stderr.count("\n") == 1
    assert not plt.get_fignums() and not Path("plot.png").exists()


WITHOUT_DISPLAY = """
import matplotlib
import spinup.cli.plot as plot
assert matplotlib.rcParams._get_backend_or_none() is None, "importing chose a backend"
(figure,) = plot.make_plots(["data/sac"])
figure.savefig("python.png")
plot.main(["data/sac"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems show windows without DISPLAY")
def test_without_a_display(folders):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DISPLAY],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "no display for a window" in done.stdout and "saved plot.png" in done.stdout
    assert Path("plot.png").exists() and Path("python.png").exists()


def test_with_a_window_system_that_cannot_start(folders, monkeypatch, capsys):
    figure, failures = plt.figure, [ImportError("Cannot load backend 'TkAgg'")]

    def fail_once(*args, **kwargs):
        if failures:
            raise failures.pop()
        return figure(*args, **kwargs)

    monkeypatch.setattr(plt, "figure", fail_once)
    assert main(["data/sac"]) == 0
    assert "no display for a window" in capsys.readouterr().out
    assert Path("plot.png").exists()


# --- The page ---


@pytest.fixture
def runs_of_the_page():
    for name, final in (("ppo", 200.0), ("sac", 300.0)):
        for seed in (0, 10):
            returns = np.linspace(seed, final, 8)
            times = np.arange(8) * (1 + seed / 100)
            more = {"EpLen": returns, "Time": times}
            write_run(f"data/{name}/{name}_s{seed}", returns, name, **more)


def test_the_code_of_the_page_runs(runs_of_the_page):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), {})  # noqa: S102


def test_the_commands_of_the_page_run(runs_of_the_page):
    commands = re.findall(
        r"^python -m spinup\.run plot (.*)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(commands) == 5
    for command in commands:
        assert main(command.split()) == 0
    written = {path.name for path in Path().iterdir() if path.is_file()}
    assert written == {
        "plot.png", "curves.png", "curves-Performance.png", "curves-EpLen.png", "seeds.pdf",
        "median.svg",
    }  # fmt: skip


def test_the_page_has_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}
    page = re.sub("run (ppo|sac) .*", "", DOCS.read_text(encoding="utf-8"))  # other commands' flags
    assert options == set(re.findall(r"--\w+", page))

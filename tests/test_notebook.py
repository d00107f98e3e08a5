"""Runs the notebook from top to bottom, and checks its outputs."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "docs" / "notebooks" / "quickstart.ipynb"

nbclient = pytest.importorskip("nbclient", reason="nbclient executes notebooks")
nbformat = pytest.importorskip("nbformat", reason="nbformat reads notebooks")
if importlib.util.find_spec("ipykernel") is None:  # not imported: it marks a process as a notebook
    pytest.skip("ipykernel runs the cells", allow_module_level=True)
pytest.importorskip("pygame", reason="pygame draws CartPole")


def execute(path, folder, timeout=240):
    """Executes a notebook in a folder, in a kernel of this interpreter and of this checkout.

    The user's kernels, start-up files and settings have no effect.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    settings = folder / "settings"
    spec = settings / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    env |= {"IPYTHONDIR": str(settings / "ipython"), "JUPYTER_CONFIG_DIR": str(settings)}

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
        timeout=timeout,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    return notebook


def outputs(cell):
    return cell.get("outputs", [])


def printed(cell):
    return "".join(output.text for output in outputs(cell) if output.output_type == "stream")


def images(cell):
    from PIL import Image

    pngs = [o.data["image/png"] for o in outputs(cell) if "image/png" in o.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in pngs]


def returns(folder):
    header, *rows = (folder / "progress.txt").read_text().splitlines()
    column = header.split("\t").index("AverageEpRet")
    return [float(row.split("\t")[column]) for row in rows]


@pytest.mark.notebook
def test_the_quickstart(tmp_path):
    notebook = execute(QUICKSTART, tmp_path)
    cells = {cell.id: cell for cell in notebook.cells}

    curve = returns(tmp_path / "data" / "quickstart" / "ppo")
    assert max(curve[-3:]) > 5 * curve[0]
    assert [len(images(cells[name])) for name in ("plot", "frames", "grid-plot")] == [1, 1, 1]

    # The deterministic policy balances for longer than that of the first epoch, and frames show it.
    watched = printed(cells["watch"])
    assert watched.count("Episode ") == 5
    average = float(watched.split("AverageEpRet |")[1].split("|")[0])
    assert average > 3 * curve[0]
    (strip,) = images(cells["frames"])
    assert strip[..., :3].std() > 10

    grid = tmp_path / "data" / "quickstart" / "grid"
    runs = sorted(path.parent.name for path in grid.rglob("progress.txt"))
    assert runs == ["cartpole_lr0-0001_s0", "cartpole_lr0-001_s0"]
    assert all(name in printed(cells["grid"]) for name in ("cartpole_lr0-0001", "cartpole_lr0-001"))
    for folder in grid.rglob("*_s0"):
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"

    assert {path.name for path in tmp_path.iterdir()} == {"data", "settings"}


PLOT_CELLS = [
    """import os
os.makedirs("data/demo/demo_s0")
with open("data/demo/demo_s0/progress.txt", "w") as file:
    file.write("Epoch\\tAverageEpRet\\tTotalEnvInteracts\\n0\\t1\\t10\\n1\\t2\\t20\\n")
from spinup.utils.plot import get_datasets, make_plots, plot_data
figures = make_plots("data/demo")""",
    'make_plots("data/demo", values=["Performance", "Epoch"])',
    "figures",
    'axes = plot_data(get_datasets("data/demo"))',
    "axes.figure",
]


@pytest.mark.notebook
def test_each_plot_is_shown_once_where_it_is_made_or_named(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, PLOT_CELLS)))
    nbformat.write(notebook, tmp_path / "plots.ipynb")
    cells = execute(tmp_path / "plots.ipynb", tmp_path).cells
    assert [len(images(cell)) for cell in cells] == [1, 2, 1, 1, 1]
    texts = [o for cell in cells[1:3] for o in outputs(cell) if o.output_type == "execute_result"]
    assert texts == []  # no "[<Figure size ...>]"


def test_the_committed_quickstart_is_what_a_reader_should_see():
    assert QUICKSTART.stat().st_size < 300_000
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    errors = [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not errors
    assert all("/home/" not in printed(cell) and "/tmp/" not in printed(cell) for cell in code)
    assert any(images(cell) for cell in code)

"""Builds the package. `make install` installs the exact versions in requirements-dev.txt."""

import os
import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version():
    """Returns the version, read as text because importing spinup needs torch."""
    text = (HERE / "spinup" / "version.py").read_text(encoding="utf-8")
    return re.search(r"^__version__\s*=\s*[\"']([^\"']+)[\"']", text, re.MULTILINE).group(1)


def read_readme():
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# From 3.16 on, MuJoCo warns about Gymnasium's models and writes a MUJOCO_LOG.TXT where it runs.
MUJOCO = ["gymnasium[mujoco]>=1.0", "mujoco>=3.1,<3.16"]
BOX2D = ["gymnasium[box2d]>=1.0"]
VIDEO = ["gymnasium[classic-control]>=1.0", "moviepy>=2.0"]
TENSORBOARD = ["tensorboard>=2.15"]
WANDB = ["wandb>=0.16"]
SLURM = ["submitit>=1.5"]
DOCS = ["ipykernel>=6.25", "nbclient>=0.9", "nbformat>=5.9"]
TOOLS = ["mypy>=1.8", "pytest>=8.0", "pytest-timeout>=2.2", "ruff>=0.6", "setuptools>=77"]

# Makes training on a CPU faster; optional, since it needs a C compiler. See spinup/fast/kernels.py.
KERNELS = Extension(
    "spinup.fast._kernels",
    ["spinup/fast/_kernels.c"],
    depends=["spinup/fast/_kernels.h"],
    extra_compile_args=["-O3", "-fno-math-errno", "-Wno-psabi"],
    optional=True,
)
# The meeting points of ranks, for any POSIX system; optional as well. See spinup/fast/shared.py.
RANKS = Extension(
    "spinup.fast._ranks", ["spinup/fast/_ranks.c"], extra_compile_args=["-O3"], optional=True
)
CAN_HAVE_KERNELS = sys.platform == "linux" and platform.machine() == "x86_64"

setup(
    name="spinup",
    version=read_version(),
    description="Deep reinforcement learning you can read in one sitting and run at full speed.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="the spinup authors",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["spinup", "spinup.*"]),
    ext_modules=[RANKS] * (os.name == "posix") + [KERNELS] * CAN_HAVE_KERNELS,
    python_requires=">=3.10",
    install_requires=[
        "cloudpickle>=2.2",
        "gymnasium>=1.0",
        "matplotlib>=3.7",
        # The mpich wheel contains MPI. There is none for Windows, where spinup runs on one rank.
        "mpi4py>=4.1; sys_platform != 'win32'",
        "mpich>=4.3.1; sys_platform != 'win32'",
        "numpy>=1.25",
        "pandas>=2.0",
        "rich>=13.0",
        "safetensors>=0.4",
        "seaborn>=0.13",
        "threadpoolctl>=3.1",
        # Since 2.4, PyTorch's Adam has a fused kernel on the CPU.
        "torch>=2.4",
    ],
    extras_require={
        "mujoco": MUJOCO,
        "box2d": BOX2D,
        "video": VIDEO,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "slurm": SLURM,
        "docs": DOCS,
        "dev": MUJOCO + VIDEO + SLURM + DOCS + TOOLS,
    },
    entry_points={"console_scripts": ["spinup = spinup.cli.main:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

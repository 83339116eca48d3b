from pathlib import Path

from setuptools import find_packages, setup

audio = ["soundfile>=0.12", "soxr>=0.3.7"]
predict = [*audio, "safetensors>=0.4"]
report = ["matplotlib>=3.8"]
train = [*predict, *report, "accelerate>=1.10", "scikit-learn>=1.3", "tqdm>=4.66"]
transformers = [*predict, "accelerate>=1.10", "transformers>=4.50"]
hub = ["huggingface_hub>=0.26", "safetensors>=0.4.3"]
onnx = ["onnx>=1.17", "onnxscript>=0.5"]
benchmark = [
    *report,
    "pytest>=8",
    "pytest-benchmark[histogram]>=5",
    "soundfile>=0.12",
    "tqdm>=4.66",
    "transformers>=4.50",
]

setup(
    name="septr_fast",
    version="0.1.0",
    description="Fast and exact SepTr: the Separable Transformer for audio spectrograms, a drop-in replacement",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["septr_fast", "septr_fast.*"]), "septr_fast.kernels"],
    package_dir={"septr_fast.kernels": "kernels"},
    package_data={"septr_fast": ["py.typed", "forecast/stub.c"]},
    entry_points={"console_scripts": ["septr-fast = septr_fast.commands.main:main"]},
    install_requires=["torch>=2.5", "einops>=0.8", "numpy>=1.26"],
    extras_require={
        "triton": ["triton>=3.6"],
        "audio": audio,
        "predict": predict,
        "report": report,
        "explain": [*predict, *report],
        "train": train,
        "transformers": transformers,
        "hub": hub,
        "onnx": onnx,
        "benchmark": benchmark,
        "speech": ["espeakng-loader>=0.2", "tqdm>=4.66"],
        "dev": [
            *benchmark,
            *train,
            *hub,
            *onnx,
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "librosa>=0.10",
            "lightning>=2.4",
            "mypy>=1.13",
            "onnxruntime>=1.20",
            "pip-audit>=2.7",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "triton>=3.6; sys_platform == 'linux'",
            "types-tqdm",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

"""What pyproject.toml cannot say: the wheel carries weights/ as bridge/_weights."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bridge", "bridge.*"]), "bridge._weights"],
    package_dir={"bridge._weights": "weights"},
    package_data={
        "bridge": ["**/*.tsv", "**/*.tsv.gz", "**/*.jinja", "**/*.json", "**/*.txt", "py.typed"],
        "bridge._weights": ["**/*"],
    },
)

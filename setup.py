"""What pyproject.toml cannot say: two data folders at the root of the repository are packages of the wheel.

`spec/` and `templates/` stand at the root, where they are read and edited; in a wheel they are `attncc/spec` and
`attncc/templates`. `attncc.syntax.resources` finds them in both places.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["attncc", "attncc.*"]), "attncc.spec", "attncc.templates"],
    package_dir={"attncc.spec": "spec", "attncc.templates": "templates"},
    package_data={"attncc.spec": ["*.lark", "*.md", "prelude/*.attn"], "attncc.templates": ["**/*.jinja"]},
    include_package_data=False,
)

"""The section `launch`: values are safe in a shell script, and keys do not contradict each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tunesmith.recipe.launch import Launch, LocalLaunch, SlurmLaunch, local_world_size_of

LAUNCH: TypeAdapter[LocalLaunch | SlurmLaunch] = TypeAdapter(Launch)
UNSAFE = (
    "a b",
    "a;b",
    "$(id)",
    "`id`",
    "a\nb",
    "a'b",
    'a"b',
    "a&b",
    "a|b",
    "a>b",
    "#a",
    "a\\",
    "",
    "-x",
    "--help",
    "ä",
)


def slurm(**settings: Any) -> SlurmLaunch:
    launch = LAUNCH.validate_python({"on": "slurm", **settings})
    assert isinstance(launch, SlurmLaunch)
    return launch


@contextmanager
def refused(code: str, *named: str) -> Iterator[None]:
    """Expect one error of validation with this code, whose message contains some values."""
    with pytest.raises(ValidationError) as caught:
        yield
    [error] = caught.value.errors()
    assert error["type"] == code, error
    assert all(value in error["msg"] for value in named), error


@pytest.mark.parametrize("text", UNSAFE)
@pytest.mark.parametrize("key", ["account", "partition", "qos", "python", "modules", "image", "environment", "mounts"])
def test_values_unsafe_in_a_shell_are_refused(key: str, text: str) -> None:
    inside = {"image": "x", "mounts": [text]} if key == "mounts" else {key: text}
    value = (
        {"container": inside}
        if key in ("image", "environment", "mounts")
        else {key: [text] if key == "modules" else text}
    )
    with refused("unsafe-text"):
        slurm(**value)


@pytest.mark.parametrize(
    "text", ["--constraint=a b", "constraint=a", "-C a", "--x=$(id)", "--x='a'", "--x=a\n#SBATCH --y", "--x;y"]
)
def test_sbatch_options_are_single_words(text: str) -> None:
    with refused("unsafe-text", "--name=value"):
        slurm(sbatch=[text])


@pytest.mark.parametrize("text", ["--nodes=9", "--output=/dev/null", "--no-requeue", "--signal=KILL"])
def test_sbatch_options_of_other_keys_are_refused(text: str) -> None:
    with refused("contradiction", text.partition("=")[0]):
        slurm(sbatch=[text])


@pytest.mark.parametrize("name", ["A B", "1A", "", "A=B", "A;B"])
def test_malformed_names_of_environment_variables_are_refused(name: str) -> None:
    with refused("unsafe-text"):
        slurm(exports={name: "x"})


@pytest.mark.parametrize("value", ["a\nb", "$SCRATCH/hf", "\x1b[2J"])
def test_values_of_environment_variables_are_one_literal_line(value: str) -> None:
    with refused("unsafe-text"):
        slurm(exports={"A": value})


def test_common_values_are_accepted() -> None:
    launch = slurm(
        account="a-123", partition="normal,debug", modules=["cuda/12.4", "gcc@13"],
        container={"image": "nvcr.io/nvidia/pytorch:25.01-py3", "mounts": ["/scratch:/scratch", "/home"]},
        exports={"HF_HOME": "/scratch/my cache; really"},
        sbatch=["--constraint=[a100|h100]", "--exclusive", "--mail-type=END"],
    )  # fmt: skip
    assert launch.exports["HF_HOME"].endswith("really"), "the script quotes it"


@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        ({}, 1),
        ({"gpus_per_node": 4}, 4),
        ({"processes_per_node": 3}, 3),
        ({"gpus_per_node": 4, "processes_per_node": 2}, 2),
    ],
)
def test_local_world_size(settings: dict[str, Any], processes: int) -> None:
    assert local_world_size_of(slurm(**settings)) == processes


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({"time_limit_minutes": 5}, "contradiction", "`time_limit_minutes`"),
        ({"accelerate_config": "a.yaml"}, "no-effect", "`launcher: accelerate`"),
        ({"gpu_memory_gib": 80}, "no-effect", "`gpus_per_node`"),
        ({"gpu_type": "a100"}, "no-effect", "`gpus_per_node`"),
        ({"container": {}}, "contradiction", "`image`"),
        ({"container": {"environment": "a", "image": "b"}}, "contradiction", "`image`"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], code: str, named: str) -> None:
    with refused(code, named):
        slurm(**settings)

"""What a recipe may say of a cluster: nothing that could leave its place in a script."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tunesmith.recipe.launch import Launch, LocalLaunch, SlurmLaunch, local_world_size_of

LAUNCH: TypeAdapter[LocalLaunch | SlurmLaunch] = TypeAdapter(Launch)
EVIL = ("a b", "a;b", "$(id)", "`id`", "a\nb", "a'b", 'a"b', "a&b", "a|b", "a>b", "#a", "a\\", "", "-x", "--help", "ä")


def slurm(**settings: Any) -> SlurmLaunch:
    found = LAUNCH.validate_python({"on": "slurm", **settings})
    assert isinstance(found, SlurmLaunch)
    return found


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("key", ["account", "partition", "qos", "python", "modules", "image", "environment", "mounts"])
def test_no_value_means_anything_to_a_shell(key: str, text: str) -> None:
    inside = {"image": "x", "mounts": [text]} if key == "mounts" else {key: text}
    value = (
        {"container": inside}
        if key in ("image", "environment", "mounts")
        else {key: [text] if key == "modules" else text}
    )
    with pytest.raises(ValidationError, match=r"may hold only a letter|must not begin with a dash"):
        slurm(**value)


@pytest.mark.parametrize(
    "text", ["--constraint=a b", "constraint=a", "-C a", "--x=$(id)", "--x='a'", "--x=a\n#SBATCH --y", "--x;y"]
)
def test_options_of_sbatch_are_one_word(text: str) -> None:
    with pytest.raises(ValidationError, match="must be written --name or --name=value"):
        slurm(sbatch=[text])


@pytest.mark.parametrize("text", ["--nodes=9", "--output=/dev/null", "--no-requeue", "--signal=KILL"])
def test_what_is_written_from_other_settings_is_not_said_twice(text: str) -> None:
    with pytest.raises(ValidationError, match="is written from the other settings"):
        slurm(sbatch=[text])


@pytest.mark.parametrize("name", ["A B", "1A", "", "A=B", "A;B"])
def test_variables_have_names(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot name a variable"):
        slurm(exports={name: "x"})


@pytest.mark.parametrize(
    ("value", "told"), [("a\nb", "one line"), ("$SCRATCH/hf", "would stay one"), ("\x1b[2J", "one line")]
)
def test_values_of_variables_are_one_line_and_stand_as_they_are(value: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        slurm(exports={"A": value})


def test_usual_values_pass() -> None:
    found = slurm(
        account="a-123", partition="normal,debug", modules=["cuda/12.4", "gcc@13"],
        container={"image": "nvcr.io/nvidia/pytorch:25.01-py3", "mounts": ["/scratch:/scratch", "/home"]},
        exports={"HF_HOME": "/scratch/my cache; really"},
        sbatch=["--constraint=[a100|h100]", "--exclusive", "--mail-type=END"],
    )  # fmt: skip
    assert found.exports["HF_HOME"].endswith("really"), "what is quoted may be anything on one line"


@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        ({}, 1),
        ({"gpus_per_node": 4}, 4),
        ({"processes_per_node": 3}, 3),
        ({"gpus_per_node": 4, "processes_per_node": 2}, 2),
    ],
)
def test_processes_of_a_machine(settings: dict[str, Any], processes: int) -> None:
    assert local_world_size_of(slurm(**settings)) == processes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"time_limit_minutes": 5}, "must be less than `time_limit_minutes`"),
        ({"accelerate_config": "a.yaml"}, "has no effect without `launcher: accelerate`"),
        ({"gpu_memory_gib": 80}, "`gpu_memory_gib` has no effect without `gpus_per_node`"),
        ({"gpu_type": "a100"}, "`gpu_type` has no effect without `gpus_per_node`"),
        ({"container": {}}, "give `environment` or `image`"),
        ({"container": {"environment": "a", "image": "b"}}, "give `environment` or `image`"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        slurm(**settings)

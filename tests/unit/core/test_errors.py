"""Exit codes of the classes of errors, and their text."""

from tunesmith.core import errors
from tunesmith.core.errors import TunesmithError


def test_exit_codes_are_those_in_the_documentation() -> None:
    codes = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert codes == {
        "TunesmithError": 1, "RecipeError": 2, "DataError": 3, "VerdictRefused": 4, "DoesNotFit": 5, "DamagedFile": 6,
        "NonFinite": 7, "NotProved": 8, "Interrupted": 75, "ProcessLost": 75,
    }  # fmt: skip
    assert all(issubclass(getattr(errors, name), TunesmithError) for name in codes)


def test_an_error_prints_its_place_message_and_hint() -> None:
    assert str(TunesmithError("is wrong")) == "is wrong"
    assert str(TunesmithError("is wrong", where="x.yaml:3")) == "x.yaml:3: is wrong"
    assert str(TunesmithError("is wrong", hint="fix it")) == "is wrong\n  hint: fix it"

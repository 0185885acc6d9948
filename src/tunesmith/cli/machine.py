"""The command that checks the machine: `doctor`."""

from tunesmith.cli.app import MACHINE, command
from tunesmith.cli.options import AsJson
from tunesmith.cli.output import print_result


@command(MACHINE)
def doctor(*, as_json: AsJson = False) -> None:
    """Check this machine: packages, devices, memory and disk.

    Examples:
        tunesmith doctor
        tunesmith doctor --json
    """
    from tunesmith.doctor import examine_machine, machine_text

    facts = examine_machine()
    print_result(facts, as_json, lambda: machine_text(facts))

"""Values of JSON as source code give the same values when Python or Jinja reads them."""

from jinja2 import Environment

from tunesmith.export.literals import jinja_value, python_text, python_value

VALUE = {'a "b"': [1, 2.5, True, None, "\u00bd\U0001f600\n"], "c": {"d": False, "e": ()}}
READ = {**VALUE, "c": {"d": False, "e": []}}


def test_python_reads_the_value() -> None:
    assert eval(python_value(VALUE)) == READ


def test_jinja_reads_the_value() -> None:
    assert Environment().compile_expression(jinja_value(VALUE))() == READ


def test_text_is_printable() -> None:
    text = 'Be "brief".\n\n```\n"""{{x}}\\n<b>\u202e {city}\u00a0\u00e9\U0001f600\x07\u2028\r\t'
    assert python_text(text).isprintable()
    assert eval(python_text(text)) == text

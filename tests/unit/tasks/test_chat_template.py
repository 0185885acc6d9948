"""Chat templates render the same text as in transformers, and raise the same exceptions."""

import pytest

from tunesmith.tasks.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": 'One & "two" <b>é\n'}, {"role": "assistant", "content": "  Three."}]


def transformers_text(source: str, *, generation: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=generation, eos_token="</s>"
    )
    return str(rendered[0])


@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize(
    "source",
    [
        " {% for m in messages %}\n  {{ m.role + ': ' + m['content'] }}{{ eos_token }}\n {% endfor %}\n{{ bos_token }}",
        "{% for m in messages %}{% generation %}\n {{ m.content }}\n{% endgeneration %}{% endfor %}",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(ensure_ascii=true) }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% set ns = namespace(self=1, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}{{ strftime_now('%Y') }}",
        "{% if add_generation_prompt %}go{% endif %}{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
        "{{ messages[0].content.strip() | upper }}{{ missing }}{{ messages[-1]['content'] | trim }}",
    ],
)  # fmt: skip
def test_text_equals_that_of_transformers(source: str, generation: bool) -> None:
    text = ChatTemplate(source, {"eos_token": "</s>"}).render(MESSAGES, generation=generation)
    assert text == transformers_text(source, generation=generation)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('not this') }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.mro() }}",
    ],
)
def test_exceptions_equal_those_of_transformers(source: str) -> None:
    with pytest.raises(Exception) as ours:  # noqa: PT011
        ChatTemplate(source, {}).render(MESSAGES, generation=False)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        transformers_text(source, generation=False)
    assert type(ours.value) is type(theirs.value)

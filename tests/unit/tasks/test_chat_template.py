"""Our environment of chat templates writes what transformers' own writes, and refuses what it refuses."""

import pytest

from tunesmith.tasks.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": 'One & "two" <b>é\n'}, {"role": "assistant", "content": "  Three."}]


def theirs(source: str, *, generation: bool) -> str:
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
def test_it_writes_what_transformers_writes(source: str, generation: bool) -> None:
    written = ChatTemplate(source, {"eos_token": "</s>"}).text(MESSAGES, generation=generation)
    assert written == theirs(source, generation=generation)


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
def test_it_refuses_what_transformers_refuses(source: str) -> None:
    with pytest.raises(Exception) as mine:  # noqa: PT011
        ChatTemplate(source, {}).text(MESSAGES, generation=False)
    with pytest.raises(Exception) as own:  # noqa: PT011
        theirs(source, generation=False)
    assert type(mine.value) is type(own.value)

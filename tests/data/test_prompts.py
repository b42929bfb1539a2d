"""How a question is written: letters and texts, with and without a chat template."""

import pytest

from hf_calib.data.questions import PromptFormat


def test_letter_prompt_without_chat_template(tiny_tokenizers):
    prompt, candidates, suffix = PromptFormat().render(tiny_tokenizers["gpt2"], "Ice is", ["hot", "cold"])
    assert prompt == "Ice is\nA. hot\nB. cold\nAnswer:"
    assert candidates == [" A", " B"]
    assert suffix == "<|endoftext|>"
    assert PromptFormat().add_special_tokens(tiny_tokenizers["gpt2"])


def test_text_prompt_with_and_without_chat_template(tiny_tokenizers):
    tokenizer = tiny_tokenizers["qwen"]
    prompt, candidates, suffix = PromptFormat(scoring="text").render(tokenizer, "Ice is", ["hot", "cold"])
    assert prompt == "<|im_start|>user\nIce is<|im_end|>\n<|im_start|>assistant\n"
    assert candidates == ["hot", "cold"] and suffix == "<|im_end|>\n"
    assert not PromptFormat(scoring="text").add_special_tokens(tokenizer)
    plain = PromptFormat(scoring="text", use_chat_template=False, system_prompt="Be brief.")
    assert plain.render(tokenizer, "Ice is", ["hot", "cold"])[:2] == ("Be brief.\n\nIce is", [" hot", " cold"])
    with pytest.raises(ValueError, match="chat_template=True, but"):
        PromptFormat(use_chat_template=True).render(tiny_tokenizers["gpt2"], "Ice is", ["hot", "cold"])


@pytest.mark.parametrize(
    ("assistant", "generation", "expected"),
    [
        # a space before the answer is the answer's own (Llama 2)
        (" {{ message.content }} </s>", "", ("[user]Ice is", [" hot", " cold"], " </s>")),
        # an empty thinking block belongs to the prompt (Qwen 3)
        (
            "[bot]<think>\n\n</think>\n\n{{ message.content }}</s>",
            "[bot]",
            ("[user]Ice is[bot]<think>\n\n</think>\n\n", ["hot", "cold"], "</s>"),
        ),
        # the prompt is no prefix of the conversation: only the EOS token is known to end an answer
        ("[bot]{{ message.content }}</s>", "[generate]", ("[user]Ice is[generate]", ["hot", "cold"], "<|im_end|>")),
    ],
)
def test_chat_template_text_around_the_answer(tiny_tokenizers, assistant, generation, expected):
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}[user]{{ message.content }}{% else %}"
        f"{assistant}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{generation}{{% endif %}}"
    )
    tokenizer = tiny_tokenizers["qwen"].__class__(
        tokenizer_object=tiny_tokenizers["qwen"].backend_tokenizer, eos_token="<|im_end|>", chat_template=template
    )
    assert PromptFormat(scoring="text").render(tokenizer, "Ice is", ["hot", "cold"]) == expected


def test_template_that_rejects_system_messages(tiny_tokenizers):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = tiny_tokenizers["qwen"].__class__(
        tokenizer_object=tiny_tokenizers["qwen"].backend_tokenizer, chat_template=template
    )
    with pytest.raises(ValueError, match="refuses the system message .no system role"):
        PromptFormat(system_prompt="Be brief.").render(tokenizer, "Ice is", ["hot", "cold"])


TURNS = "{%% for m in messages %%}<s>{{ m.role }}:%s</s>{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
PARTS = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
ASKED = "<s>user:Ice is</s>"


@pytest.mark.parametrize(
    ("content", "generation", "prompt", "suffix"),
    [
        # contents as lists of parts (Gemma 3, Idefics): a text has no parts, and would be left out silently
        (PARTS, "<s>assistant:", ASKED + "<s>assistant:", "</s>"),
        # a content that is trimmed
        ("{{ m.content | trim }}", "<s>assistant:", ASKED + "<s>assistant:", "</s>"),
        # an assistant's turn is refused: its end is not known
        (
            "{{ raise_exception('no') if m.role == 'assistant' else m.content }}",
            "<s>assistant:",
            ASKED + "<s>assistant:",
            "<|im_end|>",
        ),
        # thinking blocks that the template opens (DeepSeek R1, Qwen3 Thinking, Magistral) are ended
        ("{{ m.content }}", "<s>assistant:<think>\n", ASKED + "<s>assistant:<think>\n\n</think>\n\n", "</s>"),
        ("{{ m.content }}", "<s>[THINK]", ASKED + "<s>[THINK]\n\n[/THINK]\n\n", "</s>"),
        # one that the template ends itself, where it writes an answer
        (
            "{% if m.role == 'assistant' %}<think>\n</think>\n{% endif %}{{ m.content }}",
            "<s>assistant:<think>\n",
            ASKED + "<s>assistant:<think>\n</think>\n",
            "</s>",
        ),
    ],
)
def test_chat_templates_that_want_something_else(tiny_tokenizers, content, generation, prompt, suffix):
    tokenizer = tiny_tokenizers["qwen"].__class__(
        tokenizer_object=tiny_tokenizers["qwen"].backend_tokenizer,
        eos_token="<|im_end|>",
        chat_template=TURNS % (content, generation),
    )
    assert PromptFormat(scoring="text").render(tokenizer, "Ice is", ["hot", "cold"]) == (
        prompt,
        ["hot", "cold"],
        suffix,
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}", "of the system"),
        ("Hello{% if add_generation_prompt %}.{% endif %}", "leaves out the message of the "),
        ("{{ raise_exception('never') }}", "refuses the system message .never"),
    ],
)
def test_chat_templates_that_leave_a_message_out(tiny_tokenizers, template, message):
    tokenizer = tiny_tokenizers["qwen"].__class__(
        tokenizer_object=tiny_tokenizers["qwen"].backend_tokenizer, chat_template=template
    )
    with pytest.raises(ValueError, match=message):
        PromptFormat(system_prompt="Be brief.").render(tokenizer, "Ice is", ["hot", "cold"])
    if "never" in template:
        with pytest.raises(ValueError, match="refuses the user's turn .never"):
            PromptFormat().render(tokenizer, "Ice is", ["hot", "cold"])


def test_custom_templates(tiny_tokenizers):
    tokenizer = tiny_tokenizers["llama"]
    custom = PromptFormat(prompt_template="{subject}: {question} {{pick}}\n{options}\nAnswer: ")
    prompt, candidates, _ = custom.render(tokenizer, "Ice {is}", ["hot", "cold"], subject="physics")
    assert prompt == "physics: Ice {is} {pick}\nA. hot\nB. cold\nAnswer: "
    assert candidates == ["A", "B"]
    with pytest.raises(ValueError, match="no `subject`"):
        custom.render(tokenizer, "Ice is", ["hot", "cold"])


@pytest.mark.parametrize(
    ("template", "content", "begun", "candidate"),
    [
        ("{question}\n{options}\n{assistant}Answer:", "Ice {assistant}is\nA. hot\nB. cold", "Answer:", " A"),
        ("{question} {options}{assistant}About {subject}: ", "Ice {assistant}is A. hot\nB. cold", "About ice: ", "A"),
        ("{question} {options}\n{assistant}", "Ice {assistant}is A. hot\nB. cold", "", "A"),
        ("{question} {options} {{assistant}}", "Ice {assistant}is A. hot\nB. cold {assistant}", "", "A"),
    ],
)
def test_what_begins_the_assistants_turn(tiny_tokenizers, template, content, begun, candidate):
    prompt_format, question = PromptFormat(prompt_template=template), ("Ice {assistant}is", ["hot", "cold"], "ice")
    assert prompt_format.turns(*question) == ([{"role": "user", "content": content}], begun)
    prompt, candidates, _ = prompt_format.render(tiny_tokenizers["qwen"], *question)
    assert prompt == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n{begun}"
    assert candidates[0] == candidate
    plain = prompt_format.plain(*question)
    assert plain.startswith(content) and plain.endswith(begun) and "\0" not in plain
    in_one_turn = content + "\nAnswer with one letter:" if template == PromptFormat()._template else plain
    assert prompt_format.messages(*question) == [{"role": "user", "content": in_one_turn}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_template": "{question} {choices} {options}"}, "unknown field {choices}"),
        ({"prompt_template": "{question}{}"}, "unknown field {}"),
        ({"prompt_template": "{question} {"}, "write {{ and }} for braces"),
        ({"prompt_template": "{question}"}, "lacks {options}"),
        ({"prompt_template": "{options}", "scoring": "text"}, "lacks {question}"),
        ({"prompt_template": "{question} {options} {assistant}A {assistant}"}, "{assistant} more than once"),
        ({"scoring": "letters"}, "choose 'letter' or 'text'"),
    ],
)
def test_invalid_formats_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        PromptFormat(**arguments)
    with pytest.raises(ValueError, match="27 option"):
        PromptFormat().letters(27)


def test_real_chat_template(smollm2_tokenizer):
    prompt, candidates, suffix = PromptFormat().render(smollm2_tokenizer, "Ice is", ["hot", "cold"])
    assert prompt.startswith("<|im_start|>system")
    assert prompt.endswith("\nA. hot\nB. cold<|im_end|>\n<|im_start|>assistant\nAnswer:")
    assert candidates == [" A", " B"] and suffix == "<|im_end|>\n"


def test_the_digest_tells_formats_and_tokenizers_apart(tiny_tokenizers):
    qwen, gpt2 = tiny_tokenizers["qwen"], tiny_tokenizers["gpt2"]
    digest = PromptFormat().digest(qwen)
    written_out = PromptFormat("letter", "{question}\n{options}\n{assistant}Answer:", use_chat_template=True)
    assert written_out.digest(qwen) == digest
    others = [PromptFormat("text"), PromptFormat(use_chat_template=False), PromptFormat(system_prompt="Be brief.")]
    digests = {digest, PromptFormat().digest(gpt2), *(other.digest(qwen) for other in others)}
    assert len(digests) == 5
    changed = qwen.__class__(tokenizer_object=qwen.backend_tokenizer, chat_template=qwen.chat_template + " ")
    assert changed and PromptFormat().digest(changed) not in digests
    assert PromptFormat(use_chat_template=False).digest(changed) in digests

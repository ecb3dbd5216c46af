"""Chat templates of each kind that models have, and a conversation."""

from fangyan.data.tokenization import Tokenizer
from tiny_tokenizers import KINDS

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 2 has it: no roles but the user's in brackets, and an end after each answer.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' </s>' }}{% else %}{{ raise_exception('no "
    "system') }}"
    "{% endif %}{% endfor %}"
)
# As reasoning models have it: of earlier answers what was thought is left out.
THINKS = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
    "{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "</s>"]
TALK = [
    {"role": "user", "content": "我哋去?"},
    {"role": "assistant", "content": "我哋去睇戲"},
    {"role": "user", "content": "去 nische?"},
    {"role": "assistant", "content": "amerika 去"},
]


def tokenizer(kind="byte_level", template=CHATML, **special):
    backend = KINDS[kind]()
    backend.add_special_tokens({"additional_special_tokens": SPECIAL, "eos_token": "</s>", **special})
    backend.chat_template = template
    return Tokenizer(backend)

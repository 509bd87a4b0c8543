"""The conversations that LLaVA asks its models in, by LLaVA's own names (llava/conversation.py).

A model answers best in the words it was trained with, the system sentence before the first
question among them. Which conversation is whose LLaVA tells by the name of the checkpoint.

LLaVA's "v0" and "default" are not here: they show a text model an example dialogue first, and
LLaVA asks none of its own models so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from bridge.errors import OptionError
from bridge.vlm.chat import IMAGE_TOKEN, jinja_text


@dataclass(frozen=True)
class Conversation:
    """What stands around the questions and answers of a chat.

    Attributes:
        first: before the first question, the system sentence included.
        ask, asked: before every later question, and after every question.
        tell, told: around an answer.
        open: after the last question, where the model goes on.
    """

    first: str
    ask: str
    asked: str
    tell: str
    told: str
    open: str

    def template(self, mark: str = IMAGE_TOKEN) -> str:
        """The same as a Jinja chat template, for messages of texts or of parts.

        ``mark`` is what is written for an image; one that a text has itself is written so too.
        """
        text = (
            f"{{%- macro text(it) -%}}{{{{- it | replace('{IMAGE_TOKEN}', {jinja_text(mark)}) -}}}}"
        )
        said = (
            "{%- macro said(content) -%}{%- if content is string -%}{{- text(content) -}}"
            "{%- else -%}{%- for part in content if part['type'] == 'image' -%}"
            f"{{{{- {jinja_text(mark + chr(10))} -}}}}{{%- endfor -%}}"
            "{%- for part in content if part['type'] == 'text' -%}"
            "{{- text(part['text']) -}}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
        )
        return (
            f"{text}{{%- endmacro -%}}{said}"
            "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
            f"{{{{- {jinja_text(self.first)} if loop.first else {jinja_text(self.ask)} -}}}}"
            f"{{{{- said(message['content']) + {jinja_text(self.asked)} -}}}}"
            "{%- elif message['role'] == 'assistant' -%}"
            # An answer of no length is one to come, for LLaVA.
            "{%- set answer = said(message['content']) -%}"
            f"{{{{- {jinja_text(self.tell)} + answer + {jinja_text(self.told)} if answer else "
            f"{jinja_text(self.open)} -}}}}"
            "{%- else -%}{{- raise_exception('this layout has a system sentence of its own; write "
            "yours into the first question') -}}{%- endif -%}{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{{{{- {jinja_text(self.open)} -}}}}{{%- endif -%}}"
        )


def _named(system: str, roles: tuple[str, str], after: tuple[str, str]) -> Conversation:
    """``ROLE: text``, a separator after each; the system sentence ends as a question does."""
    user, assistant = (f"{role}: " for role in roles)
    first = f"{system}{after[0]}{user}"
    return Conversation(first, user, after[0], assistant, after[1], assistant.rstrip(" "))


def _marked(system: str) -> Conversation:
    """ChatML: every message between two marks."""
    end, user, assistant = "<|im_end|>", "<|im_start|>user\n", "<|im_start|>assistant\n"
    first = f"<|im_start|>system\n{system}{end}{user}"
    return Conversation(first, user, end, assistant, end, assistant)


def _instructed(system: str, begin: str) -> Conversation:
    """Llama 2's and Mistral's: questions in brackets, the system sentence in the first of them."""
    wrapped = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    return Conversation(f"[INST] {wrapped}", f"{begin}[INST] ", " [/INST]", " ", " </s>", "")


# What LLaVA's models were trained to read; none of it is an instruction to anything else.
def _polite(who: str) -> str:
    return (
        f"A chat between a curious {who} and an artificial intelligence assistant. The assistant "
        f"gives helpful, detailed, and polite answers to the {who}'s questions."
    )


_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able "
    "to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.The visual content will be provided with the following "
    "format: <Image>visual content</Image>."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
# Llama 2's own, of its release.
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
_HUMAN, _USER = ("Human", "Assistant"), ("USER", "ASSISTANT")
_HASHES, _SPACE = ("###", "###"), (" ", "</s>")
_DIRECT = _marked("Answer the questions.")
_VICUNA = _named(_polite("user"), _USER, _SPACE)
_PLAIN = Conversation("", "", "\n", "", "\n", "")

ConversationName = Literal[
    "llava_v0",
    "v0_mmtag",
    "v1",
    "vicuna_v1",
    "llava_v1",
    "v1_mmtag",
    "llama_2",
    "llava_llama_2",
    "mistral_instruct",
    "chatml_direct",
    "mistral_direct",
    "mpt",
    "plain",
    "v0_plain",
]
CONVERSATIONS: dict[ConversationName, Conversation] = {
    "llava_v0": _named(_polite("human"), _HUMAN, _HASHES),
    "v0_mmtag": _named(_TAGGED, _HUMAN, _HASHES),
    "v1": _VICUNA,
    "vicuna_v1": _VICUNA,
    "llava_v1": _named(_polite("human"), _USER, _SPACE),
    "v1_mmtag": _named(_TAGGED, _USER, _SPACE),
    "llama_2": _instructed(_LLAMA_2, "<s>"),
    "llava_llama_2": _instructed(_LLAVA_LLAMA_2, "<s>"),
    "mistral_instruct": _instructed("", ""),
    "chatml_direct": _DIRECT,
    "mistral_direct": _DIRECT,
    "mpt": _marked(_MPT),
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
}
"""LLaVA's name of a conversation -> the conversation."""

# What LLaVA looks for in the name of a checkpoint, in this order (llava/eval/run_llava.py).
_OF_NAMES: tuple[tuple[str, ConversationName], ...] = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)


def checked_conversation(name: object) -> ConversationName:
    """Raises OptionError unless it is a name of `CONVERSATIONS`."""
    if name in get_args(ConversationName):
        return cast(ConversationName, name)
    known = ", ".join(CONVERSATIONS)
    hint = "; LLaVA asks its first models in llava_v0" if name in ("v0", "default") else ""
    raise OptionError(f"conversation is {name!r}; one of {known}{hint}")


def conversation_of(name: str, config: dict[str, Any]) -> ConversationName:
    """The conversation that LLaVA chooses for a checkpoint, by name.

    Args:
        name: the folder or hub id that the checkpoint was asked for by.
        config: its config.json. LLaVA goes by the name alone; where that tells nothing (a folder
            was given another name), its model_type is asked, and the name that it keeps.
    """
    parts = name.strip("/").split("/")
    last = "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]
    kept = str(config.get("_name_or_path") or "").strip("/").split("/")[-1]
    for each in (last, str(config.get("model_type")), kept):
        for key, found in _OF_NAMES:
            if key in each.lower():
                return found
    return "llava_v0"

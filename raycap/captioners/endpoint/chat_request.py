"""What is sent for a picture.

{"model": "llava", "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}},
    {"type": "text", "text": "Describe this picture in one sentence."}]}],
 "max_tokens": 128, "temperature": 0.0, "logprobs": true}
"""

import base64
import json
import uuid
from typing import Any

from raycap.captioners.endpoint.options import EndpointOptions
from raycap.captioners.stages import Question
from raycap.captioners.structured import Structure
from raycap.errors import UserError

# Fields that say: go on with the last message, which is the beginning of the answer.
CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}
# Complaints of servers that cannot guide an answer by a schema.
_WORDS_OF_SCHEMAS = ("response_format", "json_schema", "schema", "grammar", "guided", "structured")

# Stands for the picture while the rest is made into JSON, which costs less than escaping it.
_PICTURE = uuid.uuid4().hex
# Of a prompt in English; it only sets the first guess of a request's tokens.
_LETTERS_PER_TOKEN = 4
_TOKENS_OF_A_PICTURE = 1000


class ChatRequests:
    """Makes the requests of one captioner, in the dialect that its server understands."""

    def __init__(self, options: EndpointOptions) -> None:
        self._options = options
        self._asks_for_logprobs = options.endpoint.logprobs
        self._length_field = "max_tokens"
        self._more_fields = options.endpoint.more_fields()
        self._asks_for_schemas = True

    def body(self, picture: bytes, question: Question, seed: int, captions: int) -> bytes:
        """The JSON of a request for so many answers about an encoded picture."""
        endpoint, stage = self._options.endpoint, question.stage
        image = {"url": f"data:image/{endpoint.format};base64,{_PICTURE}"}
        if endpoint.detail:
            image["detail"] = endpoint.detail
        content = [
            {"type": "image_url", "image_url": image},
            {"type": "text", "text": question.prompt},
        ]
        system = [{"role": "system", "content": stage.system}] if stage.system else []
        begun = [{"role": "assistant", "content": stage.start}] if stage.start else []
        fields: dict[str, Any] = {
            "model": endpoint.name,
            "messages": [*system, {"role": "user", "content": content}, *begun],
            self._length_field: stage.max_tokens,
            "temperature": question.temperature,
        }
        # A field is left out where it says nothing, as some servers refuse those they lack.
        if question.temperature > 0:
            fields["seed"] = seed
        if stage.top_p != 1:
            fields["top_p"] = stage.top_p
        if stage.stop:
            fields["stop"] = list(stage.stop)
        if begun:  # vLLM and SGLang; others continue the last message by themselves
            fields |= CONTINUES
        if stage.structure is not None and self._asks_for_schemas:
            fields["response_format"] = _response_format(stage.structure)
        if captions > 1:
            fields["n"] = captions
        if self._asks_for_logprobs:
            fields["logprobs"] = True
        fields.update(self._more_fields)
        fields = {name: value for name, value in fields.items() if value is not None}
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        before, _, after = text.encode("utf-8", "replace").partition(_PICTURE.encode())
        return b"".join((before, base64.b64encode(picture), after))

    def adapt(self, complaint: str, body: bytes) -> bool:
        """Changes the dialect after a server has refused the request `body`; returns whether
        another request may be taken."""
        if "max_completion_tokens" in complaint and _holds(body, "max_tokens", self._more_fields):
            self._length_field = "max_completion_tokens"
            return True
        if "logprobs" in complaint and _holds(body, "logprobs", self._more_fields):
            self._asks_for_logprobs = False
            return True
        is_about_schema = any(word in complaint.lower() for word in _WORDS_OF_SCHEMAS)
        if is_about_schema and _holds(body, "response_format", self._more_fields):
            self._asks_for_schemas = False  # the prompt says the schema too
            return True
        for name in CONTINUES:
            if name in complaint and _holds(body, name, self._more_fields):
                leave_out = json.dumps(dict.fromkeys(CONTINUES))
                raise UserError(
                    "the server does not continue an answer that was begun "
                    f"({complaint}): leave out --captioner.start. If it continues the last "
                    f"message by itself, give --captioner.body '{leave_out}'"
                )
        return False

    def tokens_expected(self) -> int:
        """A first guess of what one request costs."""
        stages = self._options.stages
        questions = [stage.sample_question() for stage in stages]
        letters = sum(len(each.prompt) + len(each.stage.system) for each in questions)
        answers = sum(stage.max_tokens for stage in stages)
        return _TOKENS_OF_A_PICTURE + (letters // _LETTERS_PER_TOKEN + answers) // len(stages)


def _response_format(structure: Structure) -> dict[str, Any]:
    schema: Any = json.loads(structure.schema)
    if structure.tags:  # some servers take objects only
        schema = {
            "type": "object",
            "properties": {"tags": schema},
            "required": ["tags"],
            "additionalProperties": False,
        }
    described = {"name": "answer", "schema": schema}
    if structure.is_closed:
        described["strict"] = True
    return {"type": "json_schema", "json_schema": described}


def _holds(body: bytes, field: str, fixed: dict[str, Any]) -> bool:
    """Whether a request has a field that the user has not fixed."""
    return field not in fixed and f'"{field}":'.encode() in body

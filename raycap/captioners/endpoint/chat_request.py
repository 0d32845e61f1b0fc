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

    def body(self, picture: bytes, seed: int, captions: int) -> bytes:
        """The JSON of a request for so many captions of an encoded picture."""
        endpoint = self._options.endpoint
        image = {"url": f"data:image/{endpoint.format};base64,{_PICTURE}"}
        if endpoint.detail:
            image["detail"] = endpoint.detail
        content = [
            {"type": "image_url", "image_url": image},
            {"type": "text", "text": self._options.prompt},
        ]
        system = [{"role": "system", "content": endpoint.system}] if endpoint.system else []
        fields: dict[str, Any] = {
            "model": endpoint.name,
            "messages": [*system, {"role": "user", "content": content}],
            self._length_field: endpoint.max_tokens,
            "temperature": endpoint.temperature,
        }
        # A field is left out where it says nothing, as some servers refuse those they lack.
        if endpoint.temperature > 0:
            fields["seed"] = seed
        if endpoint.top_p != 1:
            fields["top_p"] = endpoint.top_p
        if endpoint.stop:
            fields["stop"] = list(endpoint.stop)
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
        return False

    def tokens_expected(self) -> int:
        """A first guess of what one request costs."""
        letters = len(self._options.prompt) + len(self._options.endpoint.system)
        prompt = _TOKENS_OF_A_PICTURE + letters // _LETTERS_PER_TOKEN
        return prompt + self._options.endpoint.max_tokens


def _holds(body: bytes, field: str, fixed: dict[str, Any]) -> bool:
    """Whether a request has a field that the user has not fixed."""
    return field not in fixed and f'"{field}":'.encode() in body

"""The captioner behind a URL: any server that speaks OpenAI's chat protocol.

    Endpoint(max_side=768).captioner("http://localhost:8000/v1", None, None)

vLLM, SGLang, llama.cpp, LM Studio, Ollama, TGI and hosted services have such a URL. In the order
in which a picture passes: `options.py` (what the user says), `captioner.py` (a picture's calls),
`journal.py` (calls that are answered already), `client.py` (one call with its retries),
`servers.py` (which server, how many requests at a time), `limits.py` and `members.py` (requests
and tokens per minute, of all workers together), `chat_request.py` and `answers.py` (what is sent
and what comes back).
"""

from raycap.captioners.endpoint.options import Endpoint, EndpointOptions

__all__ = ["Endpoint", "EndpointOptions"]

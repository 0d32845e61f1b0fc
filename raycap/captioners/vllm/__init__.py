"""Models in vLLM's engine, in workers with GPUs of their own. `pip install 'raycap[vllm]'`."""

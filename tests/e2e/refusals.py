"""Errors of inference servers for requests that are too long, and for other mistakes.

Errors of vLLM 0.8.5 to 0.32 are from its released sources; errors of earlier versions
and of other servers are from public reports. Placeholders for numbers are filled in.
"""

TOO_LONG = {
    # vllm/entrypoints/openai/serving_engine.py, 0.6 to 0.15
    "vLLM 0.6": "This model's maximum context length is 8192 tokens. However, you requested 9217 tokens (9001 in the messages, 216 in the completion). Please reduce the length of the messages or completion.",
    "vLLM 0.10, input": "This model's maximum context length is 8192 tokens. However, your request has 9001 input tokens. Please reduce the length of the input messages.",
    "vLLM 0.10, embedding": "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens in the input for embedding generation. Please reduce the length of the input.",
    "vLLM 0.11, max_tokens": "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context length is 8192 tokens and your request has 2778 input tokens (8000 > 8192 - 2778). None",
    "vLLM 0.11, embedding input": "This model's maximum embedding input length is 8192 tokens. However, you requested 9001 tokens in the input for embedding generation. Please reduce the length of the input.",
    "vLLM 0.15": "You passed 9001 input tokens and requested 16 output tokens. However, the model's context length is only 8192 tokens, resulting in a maximum input length of 8176 tokens. Please reduce the length of the input prompt.",
    "vLLM 0.16, characters": "You passed 990000 input characters and requested 16 output tokens. However, the model's context length is only 8192 tokens, resulting in a maximum input length of 8176 tokens (at most 80000 characters). Please reduce the length of the input prompt.",
    # vllm/v1/engine/processor.py, input_processor.py
    "vLLM 0.9, decoder": "The decoder prompt (length 9001) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens.",
    "vLLM 0.9, encoder": "The encoder prompt (length 9001) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens plus multimodal tokens.",
    "vLLM 0.11, window full": "The decoder prompt (length 8192) plus the number of requested output tokens (at least 1) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens (prompt + requested output tokens).",
    # vllm/entrypoints/openai/serving_engine.py: _validate_generator_input
    "vLLM 0.10, engine prompt": "The engine prompt length 9001 exceeds the max_model_len 8192. Please reduce prompt.",
    "vLLM 0.16, engine prompt": "The engine prompt length 9001 exceeds the max_model_len 8192. Please reduce prompt. None",
    # vllm/entrypoints/utils.py: get_max_tokens
    "vLLM 0.18, input length": "Input length (9001) exceeds model's maximum context length (8192).",
    # vllm/sampling_params.py: _verify_args, if the window leaves no room
    "vLLM, no room": "max_tokens must be at least 1, got -809.",
    "vLLM, no room, parameter": "max_tokens must be at least 1, got -46771. (parameter=max_tokens, value=-46771)",
    "vLLM, no room at all": "max_tokens must be at least 1, got 0.",
    "vLLM, min_tokens": "min_tokens must be less than or equal to max_tokens=8100, got 9000.",
    # vllm/entrypoints/pooling/base/serving.py, renderers/params.py
    "vLLM, truncation": "truncate_prompt_tokens value is greater than max_model_len. Please, select a smaller truncation size.",
    "vLLM 0.8, truncation": "truncate_prompt_tokens value (9000) is greater than max_model_len (8192). Please, select a smaller truncation size.",
    "vLLM 0.32, truncation": "truncate_prompt_tokens=9000 cannot be greater than max_model_len = 8192. Please request a smaller truncation size.",
    "vLLM 0.32, max_tokens": "max_tokens=9000 cannot be greater than max_model_len=8192. Please request fewer output tokens.",
    "vLLM 0.32, prompt": "This model's maximum context length is 8192 tokens. However, your prompt contains 9001 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
    "vLLM 0.32, characters": "This model's maximum context length is 8192 tokens. However, your prompt contains 990000 characters (more than 80000 characters, which is the upper bound for 8192 input tokens). Please reduce the length of the input prompt.",
    "vLLM 0.32, both": "This model's maximum context length is 8192 tokens. However, you requested 216 output tokens and your prompt contains at least 7977 input tokens, for a total of at least 8193 tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
    # vllm/v1/engine/input_processor.py, entrypoints/pooling/scoring/io_processor.py,
    # entrypoints/generate/structured_decisions/strategies.py
    "vLLM 0.32, encoder cache": "The decoder prompt contains a(n) image item with 9001 embedding tokens, which exceeds the pre-allocated encoder cache size 8192. Please reduce the input size or increase the encoder cache size by setting --limit-mm-per-prompt at startup.",
    "vLLM 0.32, documents": "max_tokens_per_doc (9000) must be less than max_model_len (8192).",
    "vLLM 0.32, canvas": "the prompt has 8190 tokens and a canvas read adds 20, more than max_model_len=8192",
    "vLLM, Rust front end": "this model's maximum context length is 8192 tokens, but the prompt contains 9001 input tokens",
    # sglang/srt/managers/tokenizer_manager.py
    "SGLang, input": "The input (9001 tokens) is longer than the model's context length (8192 tokens).",
    "SGLang, both": "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a total of 9217 tokens: 9001 tokens from the input messages and 216 tokens for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit.",
    "SGLang, scheduler": "Input length (9001 tokens) exceeds the maximum allowed length (8186 tokens). Use a shorter input or enable --allow-auto-truncate.",
    # text-generation-inference/router/src/validation.rs
    "TGI, both": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 9001 `inputs` tokens and 216 `max_new_tokens`",
    "TGI, input": "Input validation error: `inputs` must have less than 8191 tokens. Given: 9001",
    # tensorrt_llm/executor, cpp/tensorrt_llm/batch_manager
    "TensorRT-LLM, sum": "The sum of prompt length (9001.0), and query length (0), max_tokens (216) should not exceed max_num_tokens (8192)",
    "TensorRT-LLM, prompt": "Prompt length (9001) exceeds maximum input length (8192). Set log level to info and check TRTGPTModel logs for how maximum input length is set",
    "TensorRT-LLM, no room": "default_max_tokens (-809) must be greater than 0, default_max_tokens (-809) = max_seq_len (8192) - splited_prompt_len (9001) - query_token_len (0)",
    # llama.cpp/tools/server/server.cpp
    "llama.cpp": "the request exceeds the available context size, try increasing it",
    "llama.cpp, sizes": "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it",
}
"""Errors that would not occur in a pool with a larger window."""

OTHER = {
    "temperature": "temperature must be non-negative, got -1.0.",
    "top_p": "top_p must be in (0, 1], got 5.0.",
    "top_k": "top_k must be 0 (disable), or at least 1, got -2.",
    "n": "n must be at least 1, got 0.",
    "logprobs": "Requested sample logprobs of 30, which is greater than max allowed: 20",
    "stop": "stop cannot contain an empty string.",
    "a field": "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]",
    "a type": "1 validation error: {'type': 'int_parsing', 'loc': ('body', 'max_tokens'), 'msg': 'Input should be a valid integer, unable to parse string as an integer'}",
    "a quoted number": "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'the prompt is longer than max_model_len'}",
    "a quoted text": "1 validation error:\n  {'type': 'list_type', 'loc': ('body', 'messages'), 'msg': 'Input should be a valid list', 'input': 'The context length is at most 8192 tokens.'}",
    "prompts": "prompt list length 3000 exceeds the maximum allowed count of 1024. To increase this limit, set the VLLM_MAX_COMPLETION_PROMPTS environment variable. (parameter=prompt)",
    "too many n": "n must be at most 16384, got 100000. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable.",
    "an empty prompt": "The decoder prompt cannot be empty",
    "a role": "Unexpected message role: user2. Conversation roles must alternate user/assistant/user/assistant/...",
    "a tool": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    "a schema": "The provided JSON schema contains features not supported by xgrammar.",
    "a model": "The model `m2` does not exist.",
    "a template": "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the tokenizer does not define one.",
    "stream_options": "Stream options can only be defined when `stream=True`.",
    "thinking": "thinking.budget_tokens must be less than max_tokens",
    "images": "At most 1 image(s) may be provided in one prompt.",
    "a token id": "Token id 151936 is out of vocabulary",
    "min_tokens": "min_tokens must be greater than or equal to 0, got -1.",
    "it talks of lengths": "The maximum context length of a conversation is a hard question.",
}
"""Client errors that occur in every pool."""

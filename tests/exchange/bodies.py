"""Bodies that contain every part and item of each API."""

from typing import Any

PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "string", "description": "x", "enum": ["p", "q"]}
            },
        },
        "strict": True,
    },
}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "t"},
                        {
                            "type": "image_url",
                            "image_url": {"url": PNG, "detail": "low"},
                        },
                        {
                            "type": "input_audio",
                            "input_audio": {"data": "AAAA", "format": "wav"},
                        },
                        {
                            "type": "file",
                            "file": {
                                "file_id": "x",
                                "filename": "n",
                                "file_data": "data:text/plain;base64,AAAA",
                            },
                        },
                        {"type": "video_url", "video_url": {"url": "http://x/y.mp4"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "r",
                    "refusal": "no",
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                    "audio": {"id": "a"},
                    "function_call": {"name": "f", "arguments": "{}"},
                },
                {
                    "role": "tool",
                    "tool_call_id": "1",
                    "content": [{"type": "text", "text": "x"}],
                    "name": "f",
                },
                {"role": "user", "content": "u"},
            ],
            "tools": [TOOL],
            "documents": [{"title": "a", "text": "b"}],
            "chat_template_kwargs": {"x": "y"},
            "functions": [{"name": "f", "description": "d", "parameters": {}}],
            "max_tokens": 5,
        },
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "name": "ann", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "<think>a</think>b",
                    "reasoning_content": "hmm",
                    "reasoning": "oh",
                    "refusal": "no",
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "look", "arguments": '{"at": "sky"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "And?"},
                        "so",
                        {"type": "image_url", "image_url": {"url": PNG}},
                        {"image_url": PNG, "uuid": "1", "caption": "a sky"},
                        {"type": "refusal", "refusal": "no"},
                        {"type": "thinking", "thinking": "well"},
                        {
                            "type": "of another API",
                            "text": "t",
                            "body": ["x", {"y": "z"}],
                        },
                    ],
                },
            ],
            "tools": [TOOL],
            "documents": [{"title": "T", "text": "D"}],
            "chat_template": "{{ messages }}",
            "chat_template_kwargs": {
                "documents": [{"text": "E"}],
                "enable_thinking": True,
                "note": "n",
            },
            "functions": [{"name": "old", "description": "way"}],
            "extra": {"context": ["c", {"deep": "d"}]},
        },
    ],
    "/v1/completions": [
        {"model": "m", "prompt": "x", "suffix": "z", "max_tokens": 5},
        {"model": "m", "prompt": ["x", "y"], "max_tokens": 5},
        {"prompt": "Once", "suffix": "end", "context": "c"},
        {"prompt": ["Once", "Upon a time"], "context": "c"},
    ],
    "/v1/responses": [
        {
            "model": "m",
            "instructions": "i",
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "t"},
                        {"type": "input_image", "image_url": PNG},
                        {
                            "type": "input_file",
                            "filename": "f",
                            "file_data": "data:application/pdf;base64,AAAA",
                        },
                    ],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "id": "m1",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": []},
                        {"type": "refusal", "refusal": "r"},
                    ],
                },
                {
                    "type": "reasoning",
                    "id": "r1",
                    "summary": [{"type": "summary_text", "text": "s"}],
                    "content": [{"type": "reasoning_text", "text": "c"}],
                },
                {
                    "type": "reasoning",
                    "id": "r2",
                    "summary": [{"type": "summary_text", "text": "s"}],
                },
                {
                    "type": "function_call",
                    "call_id": "c",
                    "name": "f",
                    "arguments": "{}",
                },
                {"type": "function_call_output", "call_id": "c", "output": "o"},
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_text", "text": "o"}],
                },
                {
                    "type": "custom_tool_call",
                    "call_id": "c",
                    "name": "f",
                    "input": "in",
                },
                {"type": "custom_tool_call_output", "call_id": "c", "output": "o"},
                {
                    "type": "mcp_call",
                    "id": "1",
                    "name": "n",
                    "server_label": "s",
                    "arguments": "{}",
                    "output": "o",
                    "error": "e",
                },
                {
                    "type": "mcp_list_tools",
                    "id": "1",
                    "server_label": "s",
                    "tools": [
                        {
                            "name": "n",
                            "description": "d",
                            "input_schema": {"type": "object"},
                        }
                    ],
                },
                {
                    "type": "mcp_approval_response",
                    "approval_request_id": "a",
                    "approve": True,
                    "reason": "r",
                },
                {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
                {
                    "type": "local_shell_call",
                    "call_id": "c",
                    "action": {"type": "exec", "command": ["ls"], "env": {"A": "b"}},
                },
                {"type": "local_shell_call_output", "id": "c", "output": "o"},
                {
                    "type": "code_interpreter_call",
                    "id": "c",
                    "code": "x",
                    "outputs": [{"type": "logs", "logs": "l"}],
                },
                {
                    "type": "web_search_call",
                    "id": "w",
                    "action": {
                        "type": "search",
                        "query": "q",
                        "sources": [{"type": "url", "url": "u"}],
                    },
                },
                {
                    "type": "file_search_call",
                    "id": "w",
                    "queries": ["q"],
                    "results": [{"text": "t", "filename": "f"}],
                },
                {
                    "type": "computer_call",
                    "call_id": "c",
                    "action": {"type": "type", "text": "t"},
                },
                {
                    "type": "computer_call_output",
                    "call_id": "c",
                    "output": {"type": "computer_screenshot", "image_url": PNG},
                },
                {"type": "image_generation_call", "id": "i", "result": "AAAA"},
                {
                    "type": "apply_patch_call",
                    "call_id": "c",
                    "operation": {"type": "update_file", "diff": "d", "path": "p"},
                },
                "plain",
            ],
            "tools": [
                {"type": "function", "name": "f", "description": "d", "parameters": {}},
                {"type": "mcp", "server_label": "s", "server_description": "x"},
            ],
            "prompt": {"id": "p", "variables": {"a": "b"}},
            "max_output_tokens": 5,
        },
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "message", "role": "assistant", "content": "b"},
                {"type": "reasoning", "summary": [{"type": "s", "text": "why"}]},
                {
                    "type": "reasoning",
                    "content": [{"type": "reasoning_text", "text": "why"}],
                },
                {
                    "type": "function_call",
                    "name": "f",
                    "arguments": "{}",
                    "call_id": "1",
                },
                {"type": "function_call_output", "call_id": "1", "output": "42"},
                {
                    "type": "function_call_output",
                    "call_id": "1",
                    "output": [{"text": "4"}],
                },
                {"type": "custom_tool_call", "name": "g", "input": "code"},
                {"type": "custom_tool_call_output", "output": "done"},
                {"type": "mcp_call", "name": "h", "arguments": "{}", "output": "o"},
                {"type": "shell_call", "action": {"commands": ["ls"]}},
                {
                    "type": "code_interpreter_call",
                    "code": "1+1",
                    "outputs": [{"logs": "2"}],
                },
                {"type": "web_search_call", "action": {"query": "q"}},
                {
                    "type": "file_search_call",
                    "queries": ["q"],
                    "results": [{"text": "r"}],
                },
                {
                    "type": "mcp_list_tools",
                    "tools": [{"name": "t", "description": "d"}],
                },
                {"type": "apply_patch_call", "operation": {"diff": "+"}},
            ],
            "previous_input_messages": [{"role": "user", "content": "before"}],
            "tools": [{"type": "function", "name": "f", "description": "d"}],
        },
        {"input": "Hi", "prompt": {"variables": {"a": "b"}}},
    ],
    "/v1/messages": [
        {
            "model": "m",
            "max_tokens": 5,
            "system": [
                {"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "t", "citations": []},
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PNG.partition(",")[2],
                            },
                        },
                        {
                            "type": "document",
                            "source": {
                                "type": "text",
                                "media_type": "text/plain",
                                "data": "d",
                            },
                            "title": "t",
                            "context": "c",
                        },
                        {
                            "type": "document",
                            "source": {
                                "type": "content",
                                "content": [{"type": "text", "text": "x"}],
                            },
                        },
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        {"type": "redacted_thinking", "data": "AAAA"},
                        {
                            "type": "tool_use",
                            "id": "1",
                            "name": "f",
                            "input": {"a": "b"},
                        },
                        {
                            "type": "server_tool_use",
                            "id": "2",
                            "name": "web_search",
                            "input": {"query": "q"},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "1",
                            "content": [{"type": "text", "text": "x"}],
                            "is_error": False,
                        },
                        {
                            "type": "web_search_tool_result",
                            "tool_use_id": "2",
                            "content": [
                                {
                                    "type": "web_search_result",
                                    "title": "t",
                                    "url": "u",
                                    "encrypted_content": "AAAA",
                                    "page_age": "p",
                                }
                            ],
                        },
                        {
                            "type": "search_result",
                            "source": "u",
                            "title": "t",
                            "content": [{"type": "text", "text": "x"}],
                        },
                    ],
                },
            ],
            "tools": [
                {
                    "name": "f",
                    "description": "d",
                    "input_schema": {
                        "type": "object",
                        "properties": {"a": {"type": "string", "description": "x"}},
                    },
                }
            ],
            "mcp_servers": [{"name": "n"}],
        },
        {
            "system": [{"type": "text", "text": "S"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hmm", "signature": "x"},
                        {
                            "type": "tool_use",
                            "id": "1",
                            "name": "f",
                            "input": {"x": "y"},
                        },
                        {"type": "server_tool_use", "name": "s", "input": {"q": "r"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "1",
                            "content": [{"type": "text", "text": "42"}],
                        },
                        {
                            "type": "document",
                            "title": "T",
                            "context": "C",
                            "source": {"type": "text", "data": "D"},
                        },
                        {
                            "type": "search_result",
                            "title": "T",
                            "source": "s",
                            "content": [{"type": "text", "text": "r"}],
                        },
                    ],
                },
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {}}],
        },
    ],
    "/v1/embeddings": [
        {"model": "m", "input": "x"},
        {"model": "m", "input": ["x", "y"]},
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
        {"input": ["Once", "Upon a time"], "instruct": "i"},
    ],
    "/v1/rerank": [
        {"model": "m", "query": "q", "documents": ["a", "b"]},
        {
            "model": "m",
            "query": "q",
            "documents": {"content": [{"type": "text", "text": "a"}]},
        },
    ],
    "/v1/score": [
        {"model": "m", "text_1": "a", "text_2": ["b", "c"]},
        {"model": "m", "queries": ["a"], "documents": ["b"]},
        {"model": "m", "data_1": "a", "data_2": "b"},
    ],
}
"""Bodies by the path of their API."""

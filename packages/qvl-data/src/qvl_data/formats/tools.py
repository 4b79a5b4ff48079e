"""Calls of tools, lists of tools and hidden reasoning as the text that Qwen's chat template makes of them.

The template of Qwen3-VL writes each call into the answer, as `<tool_call>`, `{"name": ..., "arguments": ...}` and
`</tool_call>` on lines of their own, and lists the tools at the end of the system turn; that of the Thinking models
writes the reasoning before the answer, between `<think>` and `</think>`. Every function raises ValueError.
"""

import json
from typing import Any

_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def calls_text(calls: Any) -> str:
    """`tool_calls` of OpenAI: a list of calls, each with its `function`, or plain ones with a name and arguments."""
    if not isinstance(calls, list):
        raise ValueError("is no list of calls")
    return "\n".join(map(_call, calls))


def said_call(value: str) -> str:
    """What a turn of `function_call` says: one call as JSON, a list of calls, or calls that are tagged already."""
    if value.lstrip().startswith("<tool_call>"):
        return value
    if value.lstrip().startswith("["):
        try:
            return calls_text(json.loads(value))
        except (ValueError, RecursionError):
            raise ValueError("is no JSON list of calls, each with a name and arguments") from None
    return f"<tool_call>\n{value}\n</tool_call>"


def tools_text(tools: Any) -> str:
    """A list of tools, or the JSON text of one; a bare function is wrapped as Qwen expects it."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise ValueError("is no JSON list of tools") from None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("is no list of tools")
    wrapped = [{"type": "function", "function": tool} if "type" not in tool else tool for tool in tools]
    return _TOOLS.format(tools="".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in wrapped))


def think_text(reasoning: Any) -> str:
    """`reasoning_content`, as it stands before the answer."""
    if not isinstance(reasoning, str):
        raise ValueError("is no text")
    stripped = reasoning.strip("\n")
    return f"<think>\n{stripped}\n</think>\n\n"


def _call(call: Any) -> str:
    function = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("holds a call without a name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise ValueError(f"holds a call of {function['name']} whose arguments are neither an object nor its JSON text")
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
